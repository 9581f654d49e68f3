"""Keywords of documents, as a search engine wants them: a BIO tag for each word, from corpora with gold key phrases.

Tagging for key phrases: Sahrawat et al. 2020, https://arxiv.org/abs/1910.08840; the corpora's format:
https://github.com/LIAAD/KeywordExtractor-Datasets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.archives import FileStore, open_files
from fedstill.common.data.bio import tag_classes
from fedstill.common.data.classes import check_share, set_aside
from fedstill.common.data.content import find_task_folder, told_as_data_errors
from fedstill.common.data.preparation import AsRead
from fedstill.common.data.readers import TextLines
from fedstill.common.data.texts import word_ids
from fedstill.common.data.words import split_words
from fedstill.common.errors import DataError
from fedstill.common.labels import Classes
from fedstill.common.outputs import IGNORE
from fedstill.common.tagging_metrics import phrase_f1, token_f1
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage

CLASSES = tag_classes(["keyword"])

_Document = tuple[list[str], list[list[str]]]
"""Words, and the words of each key phrase."""


@dataclass(frozen=True, slots=True)
class KeywordsTask:
    """Find the words by which a document should be found.

    A corpus is a folder or a zip archive with `docsutf8/ID.txt` and `keys/ID.key`, one key phrase a line; its name is
    the owner of its documents. A phrase counts where its words, in lower case, stand in the part of the text that is
    read: the first place has the tags, later ones no label. Of two phrases that overlap the longer one has them.

    Attributes:
        source: a folder of corpora, or one corpus.
        vocabulary: token ids are below it.
        length: words of a document that are read.
        test_share: share of the documents set aside to measure with.
    """

    name: ClassVar[str] = "keywords"
    output: ClassVar[str] = "token-level"
    modality: ClassVar[str] = "text"

    source: str
    vocabulary: int = 8192
    length: int = 128
    test_share: float = 0.2

    def __post_init__(self) -> None:
        check.at_least(2, vocabulary=self.vocabulary)
        check.at_least(1, length=self.length)
        check_share(self.test_share)

    def load(self, folder: Path | None) -> TaskData:
        """Read the documents as token ids (N, length); kept for the next call in this process."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Token ids are ready as they are."""
        return inputs

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Lines of text."""
        return Usage(AsRead(), TextLines(self.vocabulary, self.length))

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """F1 of a document's five most probable phrases (f1-at-5), then of tags other than O (token-f1)."""
        return {
            "f1-at-5": phrase_f1(logits, targets, classes, best=5),
            "token-f1": token_f1(logits.argmax(-1), targets, classes),
        }


@lru_cache(maxsize=2)
def _load(task: KeywordsTask, folder: Path | None) -> TaskData:
    with told_as_data_errors(task.source):
        corpora = {path.stem: _read(path) for path in _corpora(find_task_folder(folder, task.source))}
    documents = [document for corpus in corpora.values() for document in corpus]
    owners = tuple(name for name, corpus in corpora.items() for _ in corpus)
    inputs = word_ids([words for words, _ in documents], vocabulary=task.vocabulary, length=task.length)
    targets = torch.tensor([_targets(words, phrases, task.length) for words, phrases in documents])
    strata = (targets == CLASSES.index("B-keyword")).sum(1)
    pool, test = set_aside(Examples(inputs, targets, owners, strata), task.test_share)
    return TaskData(pool, CLASSES, test, task.vocabulary, positions=(task.length,))


def _corpora(place: Path) -> list[Path]:
    """The archives and folders of corpora in a folder, or the place itself if it is one."""
    if place.is_file() or (place / "docsutf8").is_dir():
        return [place]
    found = [path for path in place.iterdir() if path.suffix == ".zip" or (path / "docsutf8").is_dir()]
    if not found:
        raise DataError(f"{place}", "expected corpora", "zip archives or folders with docsutf8/ID.txt and keys/ID.key")
    return sorted(found, key=lambda path: path.name.lower())


def _read(path: Path) -> list[_Document]:
    """The documents of a corpus that have a word, by their names."""
    with open_files(path, (".txt", ".key"), noun="documents") as store:
        texts = [name for name in store.names if "docsutf8/" in name and name.endswith(".txt")]
        documents = [(split_words(_text(store, name, path)), _phrases(store, name, path)) for name in texts]
    found = [document for document in documents if document[0]]
    if not found:
        raise DataError(f"{path}", "expected documents docsutf8/ID.txt")
    return found


def _phrases(store: FileStore, name: str, path: Path) -> list[list[str]]:
    keys = "keys/".join(name.rsplit("docsutf8/", 1)).removesuffix(".txt") + ".key"
    if keys not in store.names:
        raise DataError(f"{path}: {name}", f"expected its key phrases in {keys}")
    phrases = [split_words(line) for line in _text(store, keys, path).splitlines()]
    # In an order that does not depend on the file's.
    return sorted((phrase for phrase in phrases if phrase), key=lambda phrase: (-len(phrase), phrase))


def _text(store: FileStore, name: str, path: Path) -> str:
    try:
        return store.read(name).decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {name}", f"byte {error.start} is no utf-8", "convert the file") from None


def _targets(words: list[str], phrases: list[list[str]], length: int) -> list[int]:
    """Positions in CLASSES, of `length`; IGNORE at padding and where a phrase that has its tags stands again."""
    words = words[:length]
    outside, begin, inside = range(3)
    targets = [outside] * len(words) + [IGNORE] * (length - len(words))
    for phrase in phrases:
        tags = [begin] + [inside] * (len(phrase) - 1)
        for first in range(len(words) - len(phrase) + 1):
            place = slice(first, first + len(phrase))
            if words[first] == phrase[0] and words[place] == phrase and not any(targets[place]):
                targets[place] = tags
                tags = [IGNORE] * len(phrase)
    return targets
