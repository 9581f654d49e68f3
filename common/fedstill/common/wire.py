"""Single fields of a stranger's records: read, or refused with the reason. With Flower, as `records`."""

from __future__ import annotations

from pathlib import PurePath
from typing import TypeVar

from flwr.app import ConfigRecord, RecordDict

from fedstill.common import PROTOCOL, __version__
from fedstill.common.errors import KnowledgeError, MismatchError
from fedstill.common.packing import HEAD, unpacked

LONGEST_NAME = 100
"""Characters in the name of a run, of a measure, of a client."""


def check_protocol(content: RecordDict) -> None:
    """Raise MismatchError if the other side speaks another protocol."""
    head_of(content)


def opened(content: RecordDict) -> RecordDict:
    """A message's records, unpacked once it is known that the other side speaks the same protocol.

    Raises:
        MismatchError: if it speaks another one.
        KnowledgeError: if they were not packed as they should be.
    """
    head_of(content)
    return unpacked(content)


def head_of(content: RecordDict) -> ConfigRecord:
    """The record that every message has.

    Raises:
        KnowledgeError: if it is missing.
        MismatchError: if the other side speaks another protocol.
    """
    head = content.get(HEAD)
    if not isinstance(head, ConfigRecord):
        raise KnowledgeError(f"a message of {sorted(content)}", f"expected a record '{HEAD}'")
    if head.get("protocol") != PROTOCOL:
        raise MismatchError(
            f"protocol {head.get('protocol')!r}",
            f"expected {PROTOCOL}",
            f"install the same version of fedstill on both sides; here it is {__version__}",
        )
    return head


def text(record: ConfigRecord, key: str) -> str:
    """A text; KnowledgeError if it is none."""
    value = record.get(key)
    if not isinstance(value, str):
        raise KnowledgeError(f"'{key}' = {value!r}", "expected a text")
    return value


def folder_name(record: ConfigRecord, key: str) -> str:
    """A text that names a folder of the client's: no path to another place."""
    value = text(record, key)
    if PurePath(value).name != value or value in ("", "..") or len(value) > LONGEST_NAME:
        raise KnowledgeError(f"'{key}' = {value!r}", "expected the name of a folder")
    return value


def whole(record: ConfigRecord, key: str) -> int:
    """A whole number from 0; KnowledgeError if it is none."""
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise KnowledgeError(f"'{key}' = {value!r}", "expected a whole number >= 0")
    return value


_Item = TypeVar("_Item", str, int)


def listed(record: ConfigRecord, key: str, kind: type[_Item]) -> list[_Item]:
    """A list of texts or of whole numbers; KnowledgeError if it is none."""
    value = record.get(key)
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise KnowledgeError(f"'{key}' = {value!r}", f"expected a list of {kind.__name__}")
    return [item for item in value if isinstance(item, kind)]
