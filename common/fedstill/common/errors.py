"""Every error that fedstill raises on purpose, in one tree.

    FedstillError                     exit code 1
    ├── ConfigError                   2   a scenario, an option or a name that cannot be used
    ├── DataError                     3   private, proxy or test data that is missing or broken
    ├── UnsupportedError              2   a combination that has no meaning (method, model, output kind)
    ├── KnowledgeError                1   arrays that are no valid knowledge
    ├── MismatchError                 1   the two sides differ: protocol, version, proxy set, task
    ├── RefusalError                  1   a client that does not do what a server asks of it
    └── RunError                      4   a run that cannot begin or go on
        ├── QuorumError               4   too few clients answered
        ├── RunFolderError            4   a run folder that is missing, foreign or damaged
        ├── StoppedError              4   somebody asked for an end; the round under way was finished first
        └── StorageError              5   the disk is full or refuses to write

Every message says the value, the rule and the cure: `temperature=0.0: expected > 0 (…)`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum
from typing import ClassVar


class FedstillError(Exception):
    """Root of the tree: a value, the rule that it breaks, and the cure."""

    exit_code: ClassVar[int] = 1

    def __init__(self, value: str, rule: str = "", cure: str = "") -> None:
        self.fault = f"{value}: {rule}" if rule else value
        self.cure = cure
        super().__init__(f"{self.fault} ({cure})" if cure else self.fault)


class ConfigError(FedstillError):
    """A scenario, an option or a name that cannot be used."""

    exit_code = 2


class DataError(FedstillError):
    """Private, proxy or test data that is missing or broken."""

    exit_code = 3


class UnsupportedError(FedstillError):
    """A combination that has no meaning, such as averaging the weights of different models."""

    exit_code = 2


class Reason(StrEnum):
    """Why a contribution does not count. Every rejection has one, and each is counted."""

    NO_ANSWER = "no-answer"
    CLIENT_ERROR = "client-error"
    TOO_LARGE = "too-large"
    MALFORMED = "malformed"
    PROTOCOL = "other-protocol"
    SENDER = "other-sender"
    STALE = "stale-round"
    DUPLICATE = "duplicate"
    TASK = "other-task"
    PROXY = "other-proxy-set"
    KIND = "other-knowledge"
    CLASSES = "other-classes"
    SAMPLES = "other-samples"
    SHAPE = "other-shape"
    TYPE = "other-type"
    NOT_FINITE = "not-finite"
    RANGE = "out-of-range"
    CONTEXT = "other-context"
    VERSION = "other-version"
    TOKENIZER = "other-tokenizer"
    REFUSED = "refused"
    BUSY = "busy"
    RESOURCES = "out-of-resources"
    STORAGE = "client-storage"


class KnowledgeError(FedstillError):
    """Arrays that are no valid knowledge: wrong shape, wrong classes, non-finite numbers."""

    def __init__(self, value: str, rule: str = "", cure: str = "", *, reason: Reason = Reason.MALFORMED) -> None:
        super().__init__(value, rule, cure)
        self.reason = reason


class MismatchError(FedstillError):
    """The two sides differ: protocol version, version of fedstill, proxy set, task."""

    def __init__(self, value: str, rule: str = "", cure: str = "", *, reason: Reason = Reason.PROTOCOL) -> None:
        super().__init__(value, rule, cure)
        self.reason = reason


class RefusalError(FedstillError):
    """A client that does not do what a server asks of it: its own policy, store or resources are against it."""

    def __init__(self, value: str, rule: str = "", cure: str = "", *, reason: Reason = Reason.REFUSED) -> None:
        super().__init__(value, rule, cure)
        self.reason = reason


class RunError(FedstillError):
    """A run that cannot begin or go on."""

    exit_code = 4


class QuorumError(RunError):
    """Too few clients answered, again and again."""


class RunFolderError(RunError):
    """A run folder that is missing, belongs to another scenario, or is damaged."""


class StoppedError(RunError):
    """Somebody asked the run to end; what was committed stays, and the run can be resumed."""


class StorageError(RunError):
    """The disk is full or refuses to write."""

    exit_code = 5


def nearest(name: str, known: Iterable[str]) -> str:
    """A cure for a misspelt name: the nearest known one, or the list of all."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names) or 'none'}"
