"""What a site's administrator lets happen: the table [policy] of client.toml."""

from __future__ import annotations

from dataclasses import dataclass

from fedstill.common import check
from fedstill.common.errors import ConfigError, nearest
from fedstill.common.knowledge import KNOWLEDGE, PRIVATE
from fedstill.common.registry import CODECS

USUAL = tuple(sorted(KNOWLEDGE.keys() - PRIVATE))
"""Kinds of knowledge that may leave if nobody says otherwise: all but what is about each private example."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits to what a server can have of a client; 0 and () are no limit but for `knowledge`.

    Attributes:
        knowledge: kinds of knowledge that may leave; () for none.
        measures: whether measures on the client's own examples may leave.
        proxy_digests: public samples that the client answers about; () for those of the pack, whatever they are.
        rounds_per_day: orders that are worked on in any 24 hours; one that is sent again counts once. A run of R
            rounds has R + 2.
        samples_per_round: public samples that one answer is about, of all tasks together.
        message_bytes: size of an answer.
        max_epochs: passes over private or public data that an order may ask for: `training.epochs` with
            `training.warmup`, and each option of the method whose name ends in "epochs".
        max_rounds: rounds of a run.
        codecs: by which an answer may be packed.
        algorithms: methods that the client takes part in.
    """

    knowledge: tuple[str, ...] = USUAL
    measures: bool = True
    proxy_digests: tuple[str, ...] = ()
    rounds_per_day: int = 0
    samples_per_round: int = 0
    message_bytes: int = 0
    max_epochs: int = 0
    max_rounds: int = 0
    codecs: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check.at_least(
            0,
            policy_rounds_per_day=self.rounds_per_day,
            policy_samples_per_round=self.samples_per_round,
            policy_message_bytes=self.message_bytes,
            policy_max_epochs=self.max_epochs,
            policy_max_rounds=self.max_rounds,
        )
        for kind in self.knowledge:
            if kind not in KNOWLEDGE:
                raise ConfigError(
                    f"policy.knowledge holds '{kind}'", "expected kinds of knowledge", nearest(kind, KNOWLEDGE)
                )
        for codec in self.codecs:
            if codec not in CODECS.names():
                raise ConfigError(f"policy.codecs holds '{codec}'", "expected codecs", nearest(codec, CODECS.names()))
