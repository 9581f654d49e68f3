"""What raw outputs say, for each output kind: labels and probabilities, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedstill.client.card import Card
from fedstill.common.data.preparation import Array
from fedstill.common.data.vocabulary import MARKS, text_of
from fedstill.common.errors import UnsupportedError

LEAST = 0.3
"""Probability of an object that is told (Zhou et al. 2019 draw those above it)."""

_GEOMETRY = 4
"""Channels behind the heat maps: ln width, ln height, steps to the centre; see `fedstill.common.outputs.dense`."""

_LARGEST = 10.0
"""ln of cells: a box of 22,026 cells covers any image, and its size is a finite number."""

_MOST = 100
"""Objects that are told of an image."""

_PAD, _, _END, _ = range(len(MARKS))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of one sample.

    Attributes:
        label: a class, or what stands for it: classes with commas between, the tags of a text, a number, a text.
        probability: of the label, from 0 to 1; of several labels the least one's, of a text's tags their mean, of a
            written text the geometric mean of its tokens'. None where there is none.
        more: what else there is, as JSON has it.
    """

    label: str
    probability: float | None
    more: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        """For programs."""
        return {"label": self.label, "probability": self.probability, **self.more}


def answers(card: Card, outputs: NDArray[np.float32], *, raw: Array, inputs: Array, top: int = 3) -> list[Answer]:
    """What raw outputs (N, …, C) say.

    Args:
        card: of the model.
        outputs: what it gave.
        raw: the inputs before they were prepared, or the prepared ones if there are no others.
        inputs: prepared ones.
        top: so many classes or candidates are told with their probabilities.

    Raises:
        UnsupportedError: for an output kind that is not known here.
    """
    kinds: dict[str, Callable[[], Iterator[Answer]]] = {
        "categorical": partial(_categorical, card, outputs, top),
        "multi-label": partial(_multi_label, card, outputs, top),
        "regression": partial(_regression, card, outputs),
        "ranking": partial(_ranking, card, outputs, raw, top),
        "token-level": partial(_token_level, card, outputs, inputs),
        "dense": partial(_dense, card, outputs),
        "sequence": partial(_sequence, card, outputs),
    }
    if card.output not in kinds:
        raise UnsupportedError(f"answers of output kind '{card.output}'", f"expected one of {', '.join(kinds)}")
    return list(kinds[card.output]())


def softmax(logits: Array) -> NDArray[np.float64]:
    """Probabilities over the last axis."""
    scores = logits.astype(np.float64)
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    shares: NDArray[np.float64] = raised / raised.sum(-1, keepdims=True)
    return shares


def sigmoid(logits: Array) -> NDArray[np.float64]:
    """A probability for each number."""
    chance: NDArray[np.float64] = 0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))
    return chance


def _top(names: tuple[str, ...], chances: NDArray[np.float64], top: int) -> list[dict[str, Any]]:
    order = np.argsort(-chances, kind="stable")[:top]
    return [{"label": names[place], "probability": float(chances[place])} for place in order]


def _categorical(card: Card, outputs: Array, top: int) -> Iterator[Answer]:
    for row in softmax(outputs):
        best = int(row.argmax())
        yield Answer(card.classes[best], float(row[best]), {"top": _top(card.classes, row, top)})


def _multi_label(card: Card, outputs: Array, top: int) -> Iterator[Answer]:
    for row in sigmoid(outputs):
        told = [(name, float(chance)) for name, chance in zip(card.classes, row, strict=True) if chance >= 0.5]
        least = min((chance for _, chance in told), default=None)
        yield Answer(", ".join(name for name, _ in told), least, {"top": _top(card.classes, row, top)})


def _regression(card: Card, outputs: Array) -> Iterator[Answer]:
    low, high = card.scale
    for row in low + outputs.astype(np.float64).reshape(len(outputs), -1) * (high - low):
        values = dict(zip(card.classes, row.tolist(), strict=True))
        yield Answer(", ".join(f"{value:.6g}" for value in row), None, {"values": values})


def _ranking(card: Card, outputs: Array, raw: Array, top: int) -> Iterator[Answer]:
    scores = np.where(raw != 0, -np.inf, outputs) if card.new_only and raw.shape == outputs.shape else outputs
    for row in scores:
        # Who knows everything is recommended nothing.
        chances = softmax(row) if np.isfinite(row).any() else np.zeros(len(row))
        told = [one for one in _top(card.classes, chances, top) if one["probability"] > 0]
        yield Answer(told[0]["label"], told[0]["probability"], {"top": told}) if told else Answer("", None, {"top": []})


def _token_level(card: Card, outputs: Array, inputs: Array) -> Iterator[Answer]:
    scores = outputs.astype(np.float64)
    if card.lead is not None:
        scores[:, 0, card.lead :] = -np.inf
        scores[:, 1:, : card.lead] = -np.inf
    for row, tokens in zip(scores, inputs, strict=True):
        places = np.flatnonzero(tokens != 0)
        there = row[places[places > 0] if card.lead == 0 else places]
        chances = softmax(there) if len(there) else there
        best = chances.argmax(-1)
        labels = [card.classes[place] for place in best]
        each = [float(chance) for chance in chances.max(-1)] if len(there) else []
        told = [{"label": label, "probability": chance} for label, chance in zip(labels, each, strict=True)]
        yield Answer(" ".join(labels), sum(each) / len(each) if each else None, {"tokens": told})


def _dense(card: Card, outputs: Array) -> Iterator[Answer]:
    kinds = card.classes[:-_GEOMETRY]
    for maps in outputs:
        found = list(found_objects(maps))
        told = [{"label": kinds[label], "probability": chance, "box": box} for label, chance, box in found]
        least = min((chance for _, chance, _ in found), default=None)
        yield Answer(", ".join(kinds[label] for label, _, _ in found), least, {"objects": told})


def found_objects(maps: Array) -> Iterator[tuple[int, float, list[float]]]:
    """The objects of maps (height, width, C + 4), the likeliest first: class, probability, and the box.

    A box is its left and upper edge, width and height, in widths and heights of the image. An object is a peak of the
    heat that is no smaller than its eight neighbours (Zhou et al. 2019, section 4).
    """
    heat = sigmoid(maps[..., :-_GEOMETRY])
    height, width, _ = heat.shape
    frame = np.pad(heat, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    around = np.max([frame[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    peaks = np.argwhere((heat == around) & (heat >= LEAST))
    for row, column, label in sorted(peaks.tolist(), key=lambda place: -heat[tuple(place)])[:_MOST]:
        geometry = maps[row, column, -_GEOMETRY:].astype(np.float64)
        size = np.exp(np.minimum(geometry[:2], _LARGEST)) / [width, height]
        centre = (np.array([column, row]) + geometry[2:]) / [width, height]
        yield label, float(heat[row, column, label]), [*(centre - size / 2).tolist(), *size.tolist()]


def _sequence(card: Card, outputs: Array) -> Iterator[Answer]:
    for steps in softmax(outputs):
        tokens = steps.argmax(-1).tolist()
        ends = [place for place, token in enumerate(tokens) if token in (_END, _PAD)]
        written = steps[: ends[0] + 1 if ends else len(tokens)]
        sureness = float(np.exp(np.log(written.max(-1).clip(1e-12)).mean()))
        yield Answer(text_of(tokens[: ends[0]] if ends else tokens, card.classes), sureness)
