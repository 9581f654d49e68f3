"""Parallel texts: files of one sentence a line, of which line n says the same in each language."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedstill.common.data.content import bare_name, find_files, part_of, read_text
from fedstill.common.errors import DataError


@dataclass(frozen=True, slots=True)
class Pairs:
    """Sentences and their translations, line by line.

    Attributes:
        where: the files, for messages.
        source: (N,) sentences of the first language.
        target: (N,) the same in the second.
    """

    where: str
    source: tuple[str, ...]
    target: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):
            raise DataError(
                f"{self.where}: {len(self.source)} and {len(self.target)} lines",
                "expected a translation for each line",
                "take files of one release",
            )


def read_pairs(
    folder: Path | None, source: str, languages: tuple[str, str], *, encoding: str = "utf-8"
) -> dict[str, Pairs]:
    """The pairs of a folder by part: "train", "validation" or "test", as the names of the files tell.

    Args:
        folder: the data folder, or None.
        source: a folder of files PART.LANGUAGE, packed or not: train.en, train.de, val.en …; or a pattern of them.
        languages: two suffixes: the language to translate, and the one to translate it to.
        encoding: of the files.

    Raises:
        DataError: if there is no file, one is damaged, a part lacks a language, or lines have no partner.
    """
    suffixes = tuple(f".{language.lower()}" for language in languages)
    files: dict[str, dict[str, Path]] = {}
    for path in find_files(folder, source, suffixes):
        stem, _, language = bare_name(path).rpartition(".")
        files.setdefault(stem, {})[language] = path
    pairs: dict[str, Pairs] = {}
    for stem, by_language in files.items():
        if part_of(stem) in pairs:
            raise DataError(
                f"'{source}' with {pairs[part_of(stem)].where} and {stem}",
                "expected one file for each part and language",
            )
        pairs[part_of(stem)] = _pairs(by_language, languages, encoding)
    return pairs


def _pairs(files: dict[str, Path], languages: tuple[str, str], encoding: str) -> Pairs:
    found = next(iter(files.values()))
    for language in languages:
        if language.lower() not in files:
            raise DataError(
                f"{found} without its '{language}'", "expected a file of each language", "set the task's 'languages'"
            )
    source, target = (files[language.lower()] for language in languages)
    return Pairs(f"{source.name} and {target.name}", _lines(source, encoding), _lines(target, encoding))


def _lines(path: Path, encoding: str) -> tuple[str, ...]:
    # Not splitlines: it takes marks inside a sentence (U+2028, say) for ends of lines.
    return tuple(line.strip() for line in read_text(path, encoding=encoding).removesuffix("\n").split("\n"))
