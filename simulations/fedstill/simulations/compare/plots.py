"""The plots of a comparison: one colour for each method, the same in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedstill.server import wording
from fedstill.server.report.axes import WIDTH, byte_axis, new_figure, score_axis, whole_numbers
from fedstill.server.report.svg import INK, MUTED, style, to_svg
from fedstill.simulations.compare.figures import Figures
from fedstill.simulations.compare.ranks import Ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2f7fd6", "#dd7327", "#2b9c68", "#c44d80", "#8467d1", "#a3812a", "#279fb3", "#c2483b")
"""Seen on white and on dark paper; after the last one they begin anew with another stroke."""

STROKES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
MARKERS = "osD^vPX*"


def round_plot(own: Sequence[Figures], methods: Sequence[str], *, name: str) -> str:
    """The clients' mean by round: mean over seeds, and from the least to the highest seed as a band."""
    with style():
        figure, axes = new_figure(3.4)
        ends = []
        for method in _there(own, methods):
            curves = [one.curve for one in own if one.method == method]
            rounds = sorted(set.intersection(*(set(curve) for curve in curves)))
            if not rounds:
                continue
            values = [[curve[place] for curve in curves] for place in rounds]
            means = [sum(row) / len(row) for row in values]
            colour, stroke, marker = _look(method, methods)
            axes.plot(rounds, means, color=colour, linestyle=stroke, linewidth=2, label=method, gid=f"m{method}")
            if len(rounds) == 1:
                axes.plot(rounds, means, color=colour, marker=marker)
            if len(curves) > 1:
                low, high = [min(row) for row in values], [max(row) for row in values]
                axes.fill_between(rounds, low, high, color=colour, alpha=0.12, linewidth=0)
            ends.append(f"{method} {wording.score(means[-1], share=own[0].share)}")
        axes.set_xlabel("round")
        whole_numbers(axes.xaxis)
        score_axis(axes, share=own[0].share)
        axes.margins(x=0.02)
        _legend(figure)
        label = f"{wording.measure_name(own[0].measure)} by round. In the last round: {'; '.join(ends)}."
        return to_svg(figure, name=name, label=label)


def bytes_plot(own: Sequence[Figures], methods: Sequence[str], *, name: str) -> str:
    """The clients' mean over the bytes that had passed, a line for each seed; "" if nothing is exchanged."""
    sent = [one for one in own if one.bytes]
    if not sent:
        return ""
    with style():
        figure, axes = new_figure(3.4)
        for method in _there(sent, methods):
            colour, stroke, marker = _look(method, methods)
            for place, one in enumerate(one for one in sent if one.method == method):
                axes.plot(
                    one.bytes,
                    list(one.curve.values()),
                    color=colour,
                    linestyle=stroke,
                    linewidth=1.6,
                    alpha=0.8,
                    marker=marker,
                    markersize=3.5,
                    label=None if place else method,
                )
        byte_axis(axes, [spent for one in sent for spent in one.bytes], log=True)
        score_axis(axes, share=own[0].share)
        _legend(figure)
        return to_svg(
            figure, name=name, label=f"{wording.measure_name(own[0].measure)} over bytes, by method and seed."
        )


def gain_plot(own: Sequence[Figures], methods: Sequence[str], *, name: str) -> str:
    """What each client gained over its model trained alone, mean over seeds: a dot for each; "" if it is not known."""
    gained = [one for one in own if any(one.gains.values())]
    if not gained:
        return ""
    told = _there(gained, methods)
    with style():
        figure, axes = new_figure(0.9 + 0.42 * len(told))
        ends = []
        for row, method in enumerate(told):
            by_client: dict[str, list[float]] = {}
            for one in gained:
                for client, value in one.gains.items() if one.method == method else ():
                    by_client.setdefault(client, []).append(value)
            dots = [sum(values) / len(values) for values in by_client.values()]
            colour, _, _ = _look(method, methods)
            axes.scatter(dots, [row] * len(dots), s=34, color=colour, alpha=0.55, linewidths=0)
            axes.scatter([sum(dots) / len(dots)], [row], marker="|", s=320, color=INK, linewidths=1.6)
            ends.append(f"{method} {wording.gain(sum(dots) / len(dots), share=own[0].share)}")
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (1.5, 2)))
        axes.grid(visible=False)
        axes.set_yticks(range(len(told)), told)
        axes.set_ylim(len(told) - 0.4, -0.6)
        _gain_axis(axes, share=own[0].share)
        return to_svg(figure, name=name, label=f"Gain of each client over alone. Means: {'; '.join(ends)}.")


def critical_plot(found: Ranks, *, name: str) -> str:
    """Mean ranks on one scale, the best on the left; a bar joins methods that do not differ (Demšar 2006, figure 1)."""
    names = list(found.mean)
    with style():
        lines = (len(names) + 1) // 2
        top = 0.9 + 0.28 * len(found.groups)
        figure, axes = new_figure(0.8 + 0.3 * (top + lines), width=1.6 * WIDTH)
        axes.set_xlim(0.9 - 0.15 * len(names), len(names) + 0.1 + 0.15 * len(names))
        axes.set_ylim(-top - 0.7 * lines, 1.5)
        axes.axis("off")
        axes.plot([1, len(names)], [0, 0], color=INK, linewidth=1.2)
        for tick in range(1, len(names) + 1):
            axes.plot([tick, tick], [0, 0.18], color=INK, linewidth=1.2)
            axes.text(tick, 0.32, str(tick), ha="center", va="bottom", fontsize=8.5, color=MUTED)
        for place, (method, rank) in enumerate(found.mean.items()):
            left = place < lines
            height = -top - 0.7 * float(place if left else len(names) - 1 - place)
            edge = 0.95 if left else len(names) + 0.05
            axes.plot([rank, rank, edge], [0.0, height, height], color=MUTED, linewidth=0.9)
            shift, side = (-0.04, "right") if left else (0.04, "left")
            axes.text(edge + shift, height, f"{method}  {rank:.2f}", ha=side, va="center", fontsize=9, color=INK)
        for place, group in enumerate(found.groups):
            ends = [found.mean[group[0]] - 0.03, found.mean[group[-1]] + 0.03]
            axes.plot(ends, [-0.4 - 0.28 * place] * 2, color=COLOURS[0], linewidth=4, solid_capstyle="round")
        if found.critical is not None:
            axes.plot([1, min(1 + found.critical, len(names) + 0.5)], [1.0, 1.0], color=INK, linewidth=1.2)
            axes.text(1, 1.1, f"CD {found.critical:.2f}", ha="left", va="bottom", fontsize=8.5, color=INK)
        ranked = ", ".join(f"{method} {rank:.2f}" for method, rank in found.mean.items())
        return to_svg(figure, name=name, label=f"Mean ranks over {found.sets} tasks: {ranked}.")


def _there(own: Sequence[Figures], methods: Sequence[str]) -> list[str]:
    known = {one.method for one in own}
    return [method for method in methods if method in known]


def _look(method: str, methods: Sequence[str]) -> tuple[str, object, str]:
    place = list(methods).index(method)
    return COLOURS[place % len(COLOURS)], STROKES[place // len(COLOURS) % len(STROKES)], MARKERS[place % len(MARKERS)]


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", ncols=4, fontsize=8.5, handlelength=2, columnspacing=1.4)


def _gain_axis(axes: Axes, *, share: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.gain(value, share=share)))
    axes.set_xlabel("points over alone" if share else "over alone")
