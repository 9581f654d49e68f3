"""A matplotlib figure as SVG that lives inside the page: its fonts, its colours, its light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib knows no CSS variables: each colour is drawn as a stand-in and replaced in the text of the SVG.
INK: Final = "#fe0101"
MUTED: Final = "#fe0102"
RULE: Final = "#fe0103"
ACCENT: Final = "#fe0104"
TEACHER: Final = "#fe0105"
ON_ACCENT: Final = "#fe0106"
BAD: Final = "#fe0107"
SOFT: Final = "#fe0108"

_VARIABLES: Final[Mapping[str, str]] = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    TEACHER: "var(--teacher)",
    ON_ACCENT: "var(--on-accent)",
    BAD: "var(--bad)",
    SOFT: "var(--soft)",
}

_SETTINGS: Final[Mapping[Any, Any]] = {  # keys of matplotlib's own Literal type
    "svg.hashsalt": "fedstill",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "hatch.color": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings inside the block, put back afterwards."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()  # whatever matplotlibrc the reader has
        mpl.rcParams.update(dict(_SETTINGS))
        yield


def to_svg(figure: Figure, *, name: str, label: str, titles: Mapping[str, str] = {}) -> str:
    """The figure as an `<svg>` element that needs nothing from outside and is the same for the same numbers.

    Args:
        figure: made and drawn inside `style()`.
        name: begins every id inside, so that several plots of one page do not get into each other's way.
        label: what a reader who cannot see it is told.
        titles: what the mouse shows over a group, by its gid.
    """
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=nothing, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    for gid, title in titles.items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}" class="named"><title>{escape(title)}</title>')
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, variable)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg role="img" aria-label="{escape(label)}" {box.group() if box else ""}>'
    return re.sub(r"^<svg[^>]*>", lambda _: opening, text)
