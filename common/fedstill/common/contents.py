"""Records of a message by their kind.

Flower's own properties for that (`config_records` and the like) give a dictionary that holds itself, and the message
with all its arrays: it stays until Python looks for such circles, which depends on the number of objects and not on
their size.
"""

from __future__ import annotations

from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

Kind = TypeVar("Kind", ArrayRecord, ConfigRecord, MetricRecord)


def of_kind(content: RecordDict, kind: type[Kind]) -> dict[str, Kind]:
    """All records of a kind, by name."""
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def named(content: RecordDict, name: str, kind: type[Kind]) -> Kind:
    """The record of a name; an empty one if there is none, or one of another kind."""
    record = content.get(name)
    return record if isinstance(record, kind) else kind()
