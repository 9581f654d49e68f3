"""What both sides compare before they work: version, tokenizer, the task's form, public samples.

The protocol is compared before a message is unpacked, in `records`; everything else here, by server and client alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from fedstill.common import __version__
from fedstill.common.errors import MismatchError, Reason
from fedstill.common.task import TaskSpec

_SHOWN = 12
"""Digits of a digest that are shown."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A task's form: two sides that have the same can exchange knowledge about it.

    Attributes:
        output, modality, input_shape, positions, tokenizer: as in `TaskSpec`.
        proxy_digest: of the public samples.
        classes: digest of the whole label space.
    """

    output: str
    modality: str
    input_shape: tuple[int, ...]
    positions: tuple[int, ...]
    tokenizer: str
    proxy_digest: str
    classes: str = ""


def schema(spec: TaskSpec, proxy_digest: str) -> Schema:
    """The form of a task over its whole label space."""
    names = hashlib.sha256("\x1f".join(spec.classes).encode()).hexdigest()[:16]
    return Schema(
        spec.output, spec.modality, spec.input_shape, spec.positions, spec.tokenizer, proxy_digest, classes=names
    )


def check_software(theirs: str) -> None:
    """Refuse another side whose fedstill differs in the first two numbers of its version.

    Raises:
        MismatchError: with the reason "other-version".
    """
    if _release(theirs) != _release(__version__):
        raise MismatchError(
            f"fedstill {theirs}",
            f"expected {_release(__version__)}.x, for here is {__version__}",
            "install the same version on both sides",
            reason=Reason.VERSION,
        )


def _release(version: str) -> str:
    return ".".join(version.split(".")[:2])


def check_schema(where: str, theirs: Schema, ours: Schema) -> None:
    """Refuse another side whose task has another form.

    Args:
        where: the task, and whose it is, for the message.
        theirs: what the other side has.
        ours: what this side has.

    Raises:
        MismatchError: for the first thing that differs, the likeliest cause of others before them.
    """
    for what, came, own, reason in (
        ("output kind", theirs.output, ours.output, Reason.TASK),
        ("modality", theirs.modality, ours.modality, Reason.TASK),
        ("tokenizer", theirs.tokenizer[:_SHOWN] or "none", ours.tokenizer[:_SHOWN] or "none", Reason.TOKENIZER),
        ("input shape", theirs.input_shape, ours.input_shape, Reason.SHAPE),
        ("output positions", theirs.positions, ours.positions, Reason.SHAPE),
        ("label space", theirs.classes, ours.classes, Reason.CLASSES),
        ("proxy set", theirs.proxy_digest[:_SHOWN], ours.proxy_digest[:_SHOWN], Reason.PROXY),
    ):
        if came != own:
            raise MismatchError(
                f"{where}: {what} {came}",
                f"expected {own}",
                "give both sides the same public pack, or the same data folder, scenario and seed",
                reason=reason,
            )
