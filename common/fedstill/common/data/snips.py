"""The commands of a voice assistant with intents and slots, as the SNIPS benchmark has them.

Coucke et al. 2018, https://arxiv.org/abs/1805.10190. Files are INTENT/train_INTENT_full.json and
INTENT/validate_INTENT.json; the three tasks that are made of them see the same inputs in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedstill.common.data.archives import FileStore, archive_in, open_files
from fedstill.common.data.bio import Span, tag_classes, tag_targets, tags_of
from fedstill.common.data.classes import class_names, class_positions
from fedstill.common.data.content import find_task_folder, told_as_data_errors
from fedstill.common.data.texts import parse_json, word_ids
from fedstill.common.data.words import split_words
from fedstill.common.errors import DataError
from fedstill.common.labels import Classes
from fedstill.common.outputs import IGNORE
from fedstill.common.task import Examples, TaskData

Part = Literal["intent", "slots", "both"]

_FILE = re.compile(r"(?P<part>train|validate)_(?P<intent>[A-Za-z]+?)(?P<full>_full)?\.json")


@dataclass(frozen=True, slots=True)
class Utterance:
    """A command.

    Attributes:
        intent: what is wanted.
        words: in lower case.
        slots: spans of words that say what about.
    """

    intent: str
    words: tuple[str, ...]
    slots: tuple[Span, ...]


@lru_cache(maxsize=4)
def load_commands(source: str, folder: Path | None, part: Part, *, vocabulary: int, length: int) -> TaskData:
    """The commands as token ids, with their intents, slots or both.

    Inputs are (N, 1 + length): position 0 holds the last id of the vocabulary, which no word has; the words follow.

    Args:
        source: the zip archive or folder.
        folder: the data folder, or None.
        part: "intent": one class for each command. "slots": a BIO tag for each word, none at position 0. "both": the
            intent at position 0 and the tags behind it, over one label space of the intents and then the tags.
        vocabulary: token ids are below it.
        length: words of a command that are read.

    Raises:
        DataError: if data is missing or broken.
    """
    with told_as_data_errors(source), open_files(archive_in(find_task_folder(folder, source)), (".json",)) as store:
        commands = {name: _read(store, name, source) for name in _chosen(store, source)}
    learnt = [one for name, rows in commands.items() if _told(name)["part"] == "train" for one in rows]
    tested = [one for name, rows in commands.items() if _told(name)["part"] == "validate" for one in rows]
    if not learnt:
        raise DataError(
            f"data '{source}'", "expected a command in a file train_INTENT_full.json", "name the files with 'source'"
        )
    intents = class_names(one.intent for one in learnt)
    tags = tag_classes(sorted({kind for one in learnt for kind, _, _ in one.slots}))
    classes = {"intent": intents, "slots": tags, "both": intents + tags}[part]

    def examples(rows: list[Utterance]) -> Examples:
        strata = class_positions([one.intent for one in rows], intents, source)
        words = word_ids([one.words for one in rows], vocabulary=vocabulary - 1, length=length)
        mark = torch.full((len(rows), 1), vocabulary - 1)
        targets = strata if part == "intent" else _targets(rows, classes, part=part, length=length, where=source)
        return Examples(torch.cat([mark, words], 1), targets, tuple(one.intent for one in rows), strata)

    positions = () if part == "intent" else (1 + length,)
    return TaskData(examples(learnt), classes, examples(tested) if tested else None, vocabulary, positions=positions)


def _targets(rows: list[Utterance], classes: Classes, *, part: Part, length: int, where: str) -> Tensor:
    """Tags behind position 0, which has the intent or nothing: (N, 1 + length) int64."""
    tags = [tags_of(one.slots, len(one.words)) for one in rows]
    if part == "slots":
        return pad(tag_targets(tags, classes, length=length, where=where), (1, 0), value=IGNORE)
    named = [[one.intent, *row] for one, row in zip(rows, tags, strict=True)]
    return tag_targets(named, classes, length=1 + length, where=where)


def _told(name: str) -> Mapping[str, str]:
    """What a file's name says: part, intent and whether it is a full part."""
    found = _FILE.fullmatch(name.rpartition("/")[2])
    return found.groupdict(default="") if found else {"part": "", "intent": "", "full": ""}


def _chosen(store: FileStore, source: str) -> list[str]:
    """The files of commands; a part that is there in full is not read a second time in extracts."""
    told = {name: _told(name) for name in store.names}
    full = {(one["part"], one["intent"]) for one in told.values() if one["full"]}
    chosen = [
        name for name, one in told.items() if one["part"] and (one["full"] or (one["part"], one["intent"]) not in full)
    ]
    if not chosen:
        raise DataError(f"data '{source}'", "expected files train_INTENT_full.json and validate_INTENT.json")
    return chosen


def _read(store: FileStore, name: str, source: str) -> list[Utterance]:
    content, where = store.read(name), Path(source) / name
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # as one file of the original is
    intent, value = _told(name)["intent"], parse_json(text, where)
    rows = value.get(intent) if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise DataError(f"{where}", f"expected an object with a list '{intent}'", "fetch the file again")
    return [_utterance(row, intent, where) for row in rows]


def _utterance(row: object, intent: str, where: Path) -> Utterance:
    words: list[str] = []
    slots: list[Span] = []
    try:
        for chunk in row["data"]:  # type: ignore[index]  # checked by trying
            first = len(words)
            words += split_words(chunk["text"])
            if "entity" in chunk and len(words) > first:
                slots.append((str(chunk["entity"]), first, len(words)))
    except (TypeError, KeyError, AttributeError):
        raise DataError(
            f"{where}: command {str(row)[:60]}", 'expected {"data": [{"text": …, "entity": …}, …]}'
        ) from None
    return Utterance(intent, tuple(words), tuple(slots))
