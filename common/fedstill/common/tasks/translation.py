"""Sentences in another language, written token by token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fedstill.common import check
from fedstill.common.data.classes import check_share, set_aside
from fedstill.common.data.content import check_encoding, told_as_data_errors
from fedstill.common.data.parallel import Pairs, read_pairs
from fedstill.common.data.preparation import AsRead
from fedstill.common.data.readers import TOKENIZER, Sentences
from fedstill.common.data.vocabulary import Vocabulary, learn_vocabulary, text_of
from fedstill.common.data.words import padded
from fedstill.common.errors import ConfigError, DataError
from fedstill.common.labels import Classes
from fedstill.common.outputs.sequence import END, hypotheses
from fedstill.common.task import Examples, TaskData
from fedstill.common.usage import Usage


@dataclass(frozen=True, slots=True)
class TranslationTask:
    """Translate a sentence.

    A source is a folder of files PART.LANGUAGE of one sentence a line: train.en.gz, train.de.gz, val.en … Tokens are
    subwords of lower-cased text, learnt from a public part that nobody is trained on. Tasks that translate the same
    language have the same source tokens, so that they can share the public sentences and an encoder.

    Attributes:
        source: a folder of such files, or a pattern.
        languages: suffixes of the files: the language to translate, and the one to translate it to.
        tokens_from: the part from which the tokens of both languages are learnt.
        vocabulary: tokens of each language.
        length: tokens of a sentence that is learnt from; pairs with a longer one are left out.
        target_length: tokens of a translation with its end mark; the rest is cut.
        encoding: of the files.
        test_share: share set aside to measure with, where there is no test part.
    """

    name: ClassVar[str] = "translation"
    output: ClassVar[str] = "sequence"
    modality: ClassVar[str] = "translation"

    source: str
    languages: tuple[str, str] = ("en", "de")
    tokens_from: str = "validation"
    vocabulary: int = 1000
    length: int = 14
    target_length: int = 20
    encoding: str = "utf-8"
    test_share: float = 0.2

    def __post_init__(self) -> None:
        check.at_least(5, vocabulary=self.vocabulary)
        check.at_least(1, length=self.length, target_length=self.target_length)
        check_share(self.test_share)
        check_encoding(self.encoding)
        if self.languages[0].lower() == self.languages[1].lower():
            raise ConfigError(f"languages = {list(self.languages)}", "expected two", 'such as ["en", "de"]')

    def load(self, folder: Path | None) -> TaskData:
        """Read sentences as (N, length + target-length) token ids, the latter part empty; kept for the next call."""
        return _load(self, folder)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        """Token ids are ready as they are."""
        return inputs

    def usage(self, folder: Path | None, proxy: Tensor) -> Usage:
        """Lines of text, a sentence each."""
        with told_as_data_errors(self.source):
            parts = read_pairs(folder, self.source, self.languages, encoding=self.encoding)
            tokens = learn_vocabulary(parts[self.tokens_from].source, self.vocabulary).tokenizer.to_str()
        reader = Sentences(TOKENIZER, self.length, self.target_length, self.encoding)
        return Usage(AsRead(), reader, {TOKENIZER: tokens.encode()})

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        """Character n-gram F (Popović 2015, https://aclanthology.org/W15-3049) and BLEU of sacrebleu, from 0 to 1."""
        import sacrebleu

        told = [text_of(row, classes) for row in hypotheses(logits).tolist()]
        true = [text_of(row, classes) for row in targets.tolist()]
        return {
            "chrf": sacrebleu.corpus_chrf(told, [true]).score / 100 if true else 0.0,
            "bleu": sacrebleu.corpus_bleu(told, [true]).score / 100 if true else 0.0,
        }


@lru_cache(maxsize=4)
def _load(task: TranslationTask, folder: Path | None) -> TaskData:
    with told_as_data_errors(task.source):
        parts = read_pairs(folder, task.source, task.languages, encoding=task.encoding)
        for part in ("train", task.tokens_from):
            if part not in parts:
                raise DataError(
                    f"part '{part}' of '{task.source}'", f"expected one of {', '.join(parts)}", "see 'tokens-from'"
                )
        public = parts[task.tokens_from]
        own, other = (learn_vocabulary(lines, task.vocabulary) for lines in (public.source, public.target))
        pool = _examples(task, parts["train"], own, other)
        test = _examples(task, parts["test"], own, other) if "test" in parts else None
    if test is None:
        pool, test = set_aside(pool, task.test_share)
    return TaskData(
        pool,
        other.tokens,
        test,
        vocabulary=len(own.tokens),
        positions=(task.target_length,),
        tokenizer=f"{own.digest} {other.digest}",
    )


def _examples(task: TranslationTask, pairs: Pairs, own: Vocabulary, other: Vocabulary) -> Examples:
    sentences = own.encode(pairs.source)
    # Only the sentence decides: tasks of other target languages then keep the same ones.
    kept = [row for row, tokens in enumerate(sentences) if 0 < len(tokens) <= task.length]
    if not kept:
        raise DataError(f"{pairs.where}: no sentence of 1 to {task.length} tokens", "expected some", "raise 'length'")
    translations = [[*tokens, END] for tokens in other.encode([pairs.target[row] for row in kept])]
    inputs = padded([sentences[row] for row in kept], task.length + task.target_length)
    return Examples(torch.from_numpy(inputs), torch.from_numpy(padded(translations, task.target_length)))
