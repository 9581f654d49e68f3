"""The plots of the report, drawn by matplotlib without its global state (no pyplot)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fedstill.server import wording
from fedstill.server.report.axes import WIDTH, byte_axis, new_figure, score_axis, whole_numbers
from fedstill.server.report.series import ClassRates, Cost, Curve, Participation, Progress
from fedstill.server.report.svg import ACCENT, BAD, INK, MUTED, ON_ACCENT, SOFT, TEACHER, style, to_svg
from fedstill.server.summary import Record, TaskResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 24
"""Steps of a heat map's colour scale."""

ANNOTATED = 160
"""Up to so many cells, a heat map says the numbers too."""


def progress_plot(curves: Progress, task: TaskResult, *, name: str) -> str:
    """The main measure by round: mean and each client, the server's model, and the level alone."""
    with style():
        figure, axes = new_figure(3.3)
        titles = {}
        for place, (client, curve) in enumerate(curves.clients.items()):
            gid = f"client{place}"
            titles[gid] = client
            _draw(axes, curve, gid=gid, color=MUTED, linewidth=0.9, alpha=0.35 if len(curves.clients) <= 30 else 0.18)
        if curves.clients:
            axes.plot([], [], color=MUTED, linewidth=0.9, alpha=0.6, label="each client")
        if curves.together:
            _draw(axes, curves.trained, color=ACCENT, linewidth=1.2, linestyle="--", label="mean, privately trained")
            _draw(axes, curves.together, color=ACCENT, linewidth=2.4, label="mean, with shared knowledge")
        elif curves.trained:
            _draw(axes, curves.trained, color=ACCENT, linewidth=2.4, label="mean of the clients")
        if curves.teacher:
            _draw(axes, curves.teacher, color=TEACHER, linewidth=2, label="server's model")
        elif curves.consensus:
            _draw(axes, curves.consensus, color=TEACHER, linewidth=2, label="consensus on the proxy set")
        if task.alone is not None:
            axes.axhline(task.alone, color=INK, linewidth=1.2, linestyle=(0, (1.5, 2)), label="mean, alone")
        axes.set_xlabel("round")
        whole_numbers(axes.xaxis)
        score_axis(axes, share=task.share)
        axes.margins(x=0.02)
        figure.legend(loc="outside upper left", ncols=2, fontsize=8.5, handlelength=2.2, columnspacing=1.6)
        measure = wording.measure_name(task.measure)
        ends = [f"{said} {_last(curve, task)}" for said, curve in _ends(curves).items() if curve]
        return to_svg(
            figure, name=name, label=f"{measure} by round. In the last round: {'; '.join(ends)}.", titles=titles
        )


def cost_plot(cost: Cost, task: TaskResult, *, name: str) -> str:
    """The main measure over the bytes of all clients, beside what FedAvg would have sent."""
    with style():
        figure, axes = new_figure(3.3)
        axes.plot(cost.bytes, cost.values, color=ACCENT, linewidth=2, marker="o", markersize=4)
        byte_axis(axes, [*cost.bytes, *cost.fedavg])
        score_axis(axes, share=task.share)
        _mark_fedavg(axes, cost)
        last = f"{wording.score(cost.values[-1], share=task.share)} after {wording.size(cost.bytes[-1])}"
        beside = f"; FedAvg would have sent {wording.size(cost.fedavg[-1])}" if cost.fedavg else ""
        label = f"{wording.measure_name(task.measure)} over bytes: {last}{beside}."
        return to_svg(figure, name=name, label=label)


def class_plot(rates: ClassRates, values: Sequence[Sequence[float | None]], *, name: str, label: str) -> str:
    """A heat map of clients (rows) by classes (columns): the deeper, the higher; a stroke where a class is unknown."""
    rows, columns = len(rates.clients), len(rates.classes)
    with style():
        # Names that stand upright take their height beside the cells'.
        below = 0.08 * max(map(len, map(_shortened, rates.classes))) if _upright(rates.classes) else 0
        figure, axes = new_figure(min(0.75 + (0.24 if rows <= 30 else 0.075) * rows, 10) + below)
        _grid(axes, rates.clients, rates.classes)
        axes.set_xlabel("class")
        cells: dict[int, list[tuple[int, int]]] = {}
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if value is not None:
                    cells.setdefault(round(min(max(value, 0), 1) * LEVELS), []).append((row, column))
        for level, members in sorted(cells.items()):
            _paint(axes, members, color=ACCENT, alpha=0.04 + 0.96 * level / LEVELS)
        pairs = [(row, column) for row in range(rows) for column in range(columns)]
        _strike(axes, [(row, column) for row, column in pairs if not rates.known[row][column]], color=MUTED)
        if rows * columns <= ANNOTATED:
            for row, column in pairs:
                value = values[row][column]
                if value is not None:
                    _say(axes, row, column, f"{100 * value:.0f}", ON_ACCENT if value > 0.55 else INK)
        return to_svg(figure, name=name, label=label)


def participation_plot(who: Participation, *, name: str) -> str:
    """Clients (rows) by rounds (columns): who counted, who was refused, who was asked in vain."""
    rows = len(who.clients)
    with style():
        figure, axes = new_figure(min(0.95 + (0.22 if rows <= 30 else 0.055) * rows, 9), width=2 * WIDTH)
        _grid(axes, who.clients, [str(number) for number in who.rounds])
        axes.set_xlabel("round")
        _paint(axes, who.accepted, color=ACCENT, alpha=0.75)
        _paint(axes, who.waived, color=SOFT, alpha=1)
        _paint(axes, who.rejected, color=BAD, alpha=0.9)
        _strike(axes, who.rejected, color=ON_ACCENT, crossed=True)
        for column, count in enumerate(who.abandoned):
            if count:
                axes.text(column, -0.75, f"+{count}", ha="center", va="bottom", fontsize=8, color=BAD)
        counts = f"{len(who.accepted)} answers counted, {len(who.rejected)} did not"
        label = f"Who took part: {counts}, {wording.count(sum(who.abandoned), 'attempt given up')}."
        return to_svg(figure, name=name, label=label)


def time_plot(rounds: Sequence[Record], *, name: str) -> str:
    """Seconds of each round."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with style():
        figure, axes = new_figure(2.1, width=2 * WIDTH)
        axes.bar(
            [record["step"] for record in rounds],
            [record["seconds"] for record in rounds],
            0.72,
            color=ACCENT,
            alpha=0.8,
        )
        axes.set_xlabel("round")
        whole_numbers(axes.xaxis)
        axes.margins(x=0.01)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g} s"))
        longest = max(rounds, key=lambda record: float(record["seconds"]))
        label = f"Time per round; the longest, round {longest['step']}, took {wording.duration(longest['seconds'])}."
        return to_svg(figure, name=name, label=label)


def _draw(axes: Axes, curve: Curve, **options: Any) -> None:
    marker = "o" if len(curve) == 1 else None
    axes.plot(list(curve), list(curve.values()), marker=marker, solid_capstyle="round", **options)


def _ends(curves: Progress) -> dict[str, Curve]:
    return {
        "mean of the clients with shared knowledge": curves.together,
        "mean of the clients privately trained": curves.trained,
        "server's model": curves.teacher,
    }


def _last(curve: Curve, task: TaskResult) -> str:
    return wording.score(curve[max(curve)], share=task.share)


def _mark_fedavg(axes: Axes, cost: Cost) -> None:
    if not cost.fedavg:
        return
    first, last = cost.fedavg[0], cost.fedavg[-1]
    if first < last:
        axes.axvspan(first, last, color=TEACHER, alpha=0.12, linewidth=0)
    for edge in cost.fedavg:
        axes.axvline(edge, color=TEACHER, linewidth=1, linestyle=(0, (3, 2)))
    text = "FedAvg, first to last round" if first < last else "FedAvg"
    axes.set_title(text, loc="right", fontsize=8.5, color=TEACHER)


def _grid(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _names(axes.set_xticks, columns, most=40, rotation=90 if _upright(columns) else 0)
    _names(axes.set_yticks, rows, most=30)


def _upright(names: Sequence[str]) -> bool:
    return sum(map(len, names)) > 60 and max(map(len, names)) > 3


def _names(set_ticks: Callable[..., Any], names: Sequence[str], *, most: int, rotation: float = 0) -> None:
    stride = -(-len(names) // most)
    places = range(0, len(names), stride)
    set_ticks(places, [_shortened(names[place]) for place in places], rotation=rotation)


def _shortened(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _paint(axes: Axes, cells: Iterable[tuple[int, int]], *, color: str, alpha: float) -> None:
    """All cells of one colour as one path: a heat map of a hundred clients stays small."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    side = 0.46
    squares = [
        Path([(c - side, r - side), (c + side, r - side), (c + side, r + side), (c - side, r + side), (c, r)], _SQUARE)
        for r, c in sorted(cells)
    ]
    if squares:
        axes.add_patch(PathPatch(Path.make_compound_path(*squares), facecolor=color, alpha=alpha, linewidth=0))


_SQUARE = (1, 2, 2, 2, 79)  # Path.MOVETO, LINETO, LINETO, LINETO, CLOSEPOLY


def _strike(axes: Axes, cells: Iterable[tuple[int, int]], *, color: str, crossed: bool = False) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    half = 0.2
    strokes = []
    for row, column in sorted(cells):
        strokes.append(Path([(column - half, row + half), (column + half, row - half)]))
        if crossed:
            strokes.append(Path([(column - half, row - half), (column + half, row + half)]))
    if strokes:
        axes.add_patch(PathPatch(Path.make_compound_path(*strokes), edgecolor=color, facecolor="none", linewidth=1.1))


def _say(axes: Axes, row: int, column: int, text: str, color: str) -> None:
    axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=color)
