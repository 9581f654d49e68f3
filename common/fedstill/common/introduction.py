"""What comes before orders, as records: a question and a client's description of itself; and a client's refusal."""

from __future__ import annotations

from dataclasses import asdict

from flwr.app import ConfigRecord, RecordDict

from fedstill.common import PROTOCOL
from fedstill.common.contents import named, of_kind
from fedstill.common.errors import Reason
from fedstill.common.handshake import Schema
from fedstill.common.messages import Description, Question, Refusal, TaskDescription
from fedstill.common.packing import HEAD
from fedstill.common.wire import head_of, listed, opened, text, whole

_TASK = "task."
_REFUSED = "refused"

OURS = frozenset({Reason.NO_ANSWER, Reason.DUPLICATE, Reason.SENDER})
"""Reasons that only a server can have; a client that names one of them refuses for no reason that is known."""


def write_description(description: Description) -> RecordDict:
    """A client's description of itself as records."""
    content = RecordDict(
        {HEAD: ConfigRecord({"protocol": PROTOCOL, "client": description.client, "software": description.software})}
    )
    for name, task in description.tasks.items():
        config = {key.replace("_", "-"): value for key, value in asdict(task).items()}
        content[_TASK + name] = ConfigRecord(
            config
            | {
                "classes": list(task.classes),
                "input-shape": list(task.input_shape),
                "positions": list(task.positions),
            }
        )
    return content


def read_description(content: RecordDict) -> Description:
    """A client's description of itself from records.

    Raises:
        MismatchError: if the client speaks another protocol.
        KnowledgeError: if a part is missing or malformed.
    """
    content = opened(content)
    head = head_of(content)
    tasks = {}
    for key, config in of_kind(content, ConfigRecord).items():
        if key.startswith(_TASK):
            tasks[key.removeprefix(_TASK)] = TaskDescription(
                output=text(config, "output"),
                modality=text(config, "modality"),
                classes=tuple(listed(config, "classes", str)),
                input_shape=tuple(listed(config, "input-shape", int)),
                model=text(config, "model"),
                parameters=whole(config, "parameters"),
                examples=whole(config, "examples"),
                proxy_digest=text(config, "proxy-digest"),
                positions=tuple(listed(config, "positions", int)),
                tokenizer=text(config, "tokenizer"),
            )
    return Description(text(head, "client"), text(head, "software"), tasks)


def write_question(question: Question) -> RecordDict:
    """The content of a message that asks a client to describe itself."""
    content = RecordDict({HEAD: ConfigRecord({"protocol": PROTOCOL, "software": question.software})})
    for name, task in question.tasks.items():
        content[_TASK + name] = ConfigRecord(
            {
                "output": task.output,
                "modality": task.modality,
                "classes": task.classes,
                "input-shape": list(task.input_shape),
                "positions": list(task.positions),
                "tokenizer": task.tokenizer,
                "proxy-digest": task.proxy_digest,
            }
        )
    return content


def read_question(content: RecordDict) -> Question:
    """What a server says of itself when it asks for a description.

    Raises:
        MismatchError: if it speaks another protocol.
        KnowledgeError: if a part is missing or malformed.
    """
    content = opened(content)
    head = head_of(content)
    tasks = {
        key.removeprefix(_TASK): Schema(
            output=text(config, "output"),
            modality=text(config, "modality"),
            input_shape=tuple(listed(config, "input-shape", int)),
            positions=tuple(listed(config, "positions", int)),
            tokenizer=text(config, "tokenizer"),
            proxy_digest=text(config, "proxy-digest"),
            classes=text(config, "classes"),
        )
        for key, config in of_kind(content, ConfigRecord).items()
        if key.startswith(_TASK)
    }
    return Question(text(head, "software"), tasks)


def write_refusal(refusal: Refusal) -> RecordDict:
    """The answer of a client that does not do what it is asked; every version of the protocol reads it."""
    return RecordDict(
        {HEAD: ConfigRecord({"protocol": PROTOCOL, _REFUSED: str(refusal.reason), "detail": refusal.detail})}
    )


def read_refusal(content: RecordDict) -> Refusal | None:
    """Why a client does not do what it was asked; None if it does. It may speak another protocol."""
    head = named(content, HEAD, ConfigRecord)
    reason = head.get(_REFUSED)
    if not isinstance(reason, str):
        return None
    detail = head.get("detail")
    try:
        known = Reason(reason)
    except ValueError:  # of a later version
        known = Reason.REFUSED
    return Refusal(Reason.REFUSED if known in OURS else known, detail if isinstance(detail, str) else "")
