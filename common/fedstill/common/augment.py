"""Random views of a batch, and the loss that asks a model for the same answer to two of them.

Sajjadi et al. 2016 (consistency under random transformations, https://arxiv.org/abs/1606.04586) with the divergence of
Xie et al. 2020 (UDA, https://arxiv.org/abs/1904.12848): the answer to one view is the soft label of the other one.

| modality | a view |
|---|---|
| image | shifted by up to ⅛ of its side, a rectangle of up to ⅓ × ⅓ blank (DeVries & Taylor 2017), mirrored if asked |
| text | a tenth of the tokens and a span of up to a fifth of them left out (set to 0; the others keep their places) |
| speech | a span of up to ⅕ of the frames and one of up to ¼ of the mel bands blank (SpecAugment, Park et al. 2019) |
| tabular | a tenth of the cells taken from another row of the batch (SCARF, Bahri et al. 2022) |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from fedstill.common.errors import ConfigError
from fedstill.common.learning import Regulariser, Run, Training
from fedstill.common.outputs import OutputKind, output_kind
from fedstill.common.seeding import torch_rng
from fedstill.common.task import TaskSpec

View = Callable[[Tensor, torch.Generator], Tensor]
"""(inputs (N, …), chance) → as many inputs, each changed at random."""

_SHIFT = 1 / 8
_CUTOUT = 1 / 3
_DROPPED = 0.1
_SPAN = 0.2
_FRAMES = 0.2
_BANDS = 0.25
_SWAPPED = 0.1


def agreement(spec: TaskSpec, training: Training, *, seed: int) -> Regulariser | None:
    """The extra loss of a fit: `training.consistency` times the divergence of the answers to two views of a batch.

    Args:
        spec: the task; its output kind has the divergence, its modality the views.
        training: weight of the loss, and whether images may be mirrored.
        seed: of the fit.

    Returns:
        None if the weight is 0.
    """
    if not training.consistency:
        return None
    view = view_of(spec.modality, training)
    if view is None:
        return None
    chance = torch_rng(seed, "views")

    def loss(run: Run, inputs: Tensor) -> Tensor:
        return training.consistency * _disagreement(
            run, view(inputs, chance), view(inputs, chance), spec.kind, text=spec.modality == "text"
        )

    return loss


def view_of(modality: str, training: Training) -> View | None:
    """The random views of a modality, mirrored as the training says; None if it has none."""
    return partial(image_view, mirror=training.mirror) if modality == "image" else _VIEWS.get(modality)


def check_views(task: str, *, output: str, modality: str) -> None:
    """Refuse a task whose answers cannot be compared between two views.

    Raises:
        ConfigError: if its modality has no views, or a view moves the positions that its answers are about.
    """
    kind = output_kind(output)
    if modality in _VIEWS and not (kind.has_positions and (modality != "text" or kind.selects)):
        return
    raise ConfigError(
        f"training.consistency with task '{task}' of modality '{modality}' and output kind '{output}'",
        f"expected one of {', '.join(_VIEWS)}, and answers without positions or to the tokens of a text",
        "set training.consistency = 0",
    )


def image_view(images: Tensor, chance: torch.Generator, *, mirror: bool = False) -> Tensor:
    """Images (N, channels, height, width), shifted with their edge repeated, with a blank rectangle (the mean: 0)."""
    count, _, height, width = images.shape
    rows, columns = (_shifted(count, side, chance) for side in (height, width))
    if mirror:
        turned = torch.rand(count, 1, generator=chance) < 0.5
        columns = torch.where(turned, columns.flip(1), columns)
    index = torch.arange(count)
    # Advanced indices on both sides of a slice come first: (N, height, width, channels).
    moved = images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    blank_rows, blank_columns = (_spans(torch.full((count,), side), side, _CUTOUT, chance) for side in (height, width))
    return moved.masked_fill((blank_rows[:, :, None] & blank_columns[:, None, :])[:, None], 0.0)


def text_view(tokens: Tensor, chance: torch.Generator) -> Tensor:
    """Token ids (N, …, length), 0 for padding, with some set to 0; a text never loses all of them."""
    flat = tokens.flatten(0, -2)
    dropped = torch.rand(flat.shape, generator=chance) < _DROPPED
    dropped |= _spans((flat != 0).sum(1), flat.shape[1], _SPAN, chance)
    left = flat.masked_fill(dropped, 0)
    emptied = (left == 0).all(1, keepdim=True)
    return torch.where(emptied, flat, left).reshape(tokens.shape)


def speech_view(spectra: Tensor, chance: torch.Generator) -> Tensor:
    """Log-mel spectra (N, …, bands, frames), standardised, with some frames and some bands at their mean, 0."""
    count, (bands, frames) = len(spectra), spectra.shape[-2:]
    blank_bands = _spans(torch.full((count,), bands), bands, _BANDS, chance)
    blank_frames = _spans(torch.full((count,), frames), frames, _FRAMES, chance)
    blank = blank_bands[:, :, None] | blank_frames[:, None, :]
    return spectra.masked_fill(blank.reshape(count, *[1] * (spectra.dim() - 3), bands, frames), 0.0)


def tabular_view(rows: Tensor, chance: torch.Generator) -> Tensor:
    """Rows (N, features) with some cells from another row: each feature keeps its distribution."""
    others = rows[torch.randperm(len(rows), generator=chance)]
    return torch.where(torch.rand(rows.shape, generator=chance) < _SWAPPED, others, rows)


_VIEWS: Mapping[str, View] = MappingProxyType(
    {"image": image_view, "speech": speech_view, "tabular": tabular_view, "text": text_view}
)


def _disagreement(run: Run, first: Tensor, second: Tensor, kind: OutputKind, *, text: bool) -> Tensor:
    # One side is a fixed target: with gradients on both, the two could meet by knowing nothing.
    with torch.no_grad():
        soft = kind.soften(run(first), 1.0)
        if text:
            # What is asked of a token that one of the views left out is no question about that token.
            soft = kind.blank(kind.blank(soft, first), second)
    return kind.divergence(run(second), soft, 1.0).mean()


def _shifted(count: int, side: int, chance: torch.Generator) -> Tensor:
    """Where each pixel of a shifted side comes from: (N, side)."""
    most = max(1, round(_SHIFT * side))
    shifts = torch.randint(-most, most + 1, (count, 1), generator=chance)
    return (torch.arange(side) + shifts).clamp(0, side - 1)


def _spans(lengths: Tensor, size: int, share: float, chance: torch.Generator) -> Tensor:
    """A random span of up to `share` of each length, and of none at times: true inside, (N, size)."""
    widths = (torch.rand(len(lengths), generator=chance) * (share * lengths + 1)).long()
    starts = (torch.rand(len(lengths), generator=chance) * (lengths - widths + 1)).long()
    places = torch.arange(size)
    return (places >= starts[:, None]) & (places < (starts + widths)[:, None])
