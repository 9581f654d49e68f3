"""A vocabulary of subwords to write with: token names that join to a text again, whoever has the names.

Learnt by byte-pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909) from public text: beginning with
letters, the most frequent pair of neighbours becomes a token, again and again. Words begin with "▁". Its tokens are a
task's label space; what only reads text takes `tokenizer.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedstill.common.errors import DataError
from fedstill.common.labels import Classes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MARKS = ("[pad]", "[start]", "[end]", "[unk]")
"""The first tokens of every vocabulary: padding, begin and end of a text, an unknown letter."""

_WORD = "▁"


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Subwords and how they are put together.

    Attributes:
        tokens: names in the order of their ids; the first are MARKS.
        digest: SHA-256 of names and merges, hexadecimal.
        tokenizer: what splits texts.
    """

    tokens: Classes
    digest: str
    tokenizer: Tokenizer

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """Token ids of each text, without marks of begin and end."""
        # One by one: a batch starts threads, which a process that is forked later (Ray) would miss.
        return [self.tokenizer.encode(text).ids for text in texts]


def learn_vocabulary(texts: Iterable[str], size: int) -> Vocabulary:
    """At most `size` subwords of lower-cased texts; the same texts give the same ones everywhere.

    Raises:
        DataError: if the letters alone need more.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=MARKS[3]))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_WORD)
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(MARKS), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if len(by_id) > size:
        raise DataError(f"{len(by_id)} letters and marks", f"expected at most vocabulary={size}", "raise it")
    digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    return Vocabulary(tuple(token for token, _ in by_id), digest, tokenizer)


def text_of(ids: Iterable[int], tokens: Classes) -> str:
    """The text that token ids tell, up to the end mark."""
    words = []
    for token in ids:
        if tokens[token] == MARKS[2]:
            break
        if tokens[token] not in MARKS[:2]:
            words.append(tokens[token])
    return "".join(words).replace(_WORD, " ").strip()
