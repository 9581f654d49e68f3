"""Axes that all plots have in common: scores, rounds and bytes, drawn without pyplot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedstill.server import wording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.6
"""Inches of a plot that takes half of a wide page and all of a phone's."""


def new_figure(height: float, *, width: float = WIDTH) -> tuple[Figure, Axes]:
    """A figure of that many inches with one pair of axes, for `to_svg`."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def score_axis(axes: Axes, *, share: bool) -> None:
    """Make the upright axis one of scores: in per cent if they are shares."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.margins(y=0.08)
    low, high = axes.get_ylim()
    if share:
        axes.set_ylim(max(low, 0 if low < 0 else low), min(high, 1.01))
    scale, unit = (100, " %") if share else (1, "")
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:.6g}{unit}".replace("-", "−")))


def whole_numbers(axis: Any) -> None:
    """Mark whole numbers only, such as rounds."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))


def byte_axis(axes: Axes, values: Sequence[float], *, log: bool = False) -> None:
    """Make the level axis one of bytes; in logarithmic scale where they reach far, or if it is wanted."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    wide = min(values) > 0 and (log or max(values) > 8 * min(values))
    if wide:
        axes.set_xscale("log")
        span = max(max(values) / min(values), 2)
        axes.set_xlim(min(values) / span**0.06, max(values) * span**0.06)
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if span > 100 else (1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.06 * max(values))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: _short_size(count)))
    axes.set_xlabel("bytes of all clients, up and down" + (" (log scale)" if wide else ""))


def _short_size(count: float) -> str:
    return wording.size(count).replace(".00", "").replace(".0\u00a0", "\u00a0")
