"""The files of a comparison: Markdown, CSV, JSON, and one HTML page that needs nothing from outside."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedstill.common.files import write_atomically
from fedstill.server.report.template import need_plots, render
from fedstill.server.wording import count, measure_name
from fedstill.simulations.compare import plots
from fedstill.simulations.compare.comparison import Comparison
from fedstill.simulations.compare.table import cell, columns, comma_separated, markdown, notes, subject

NAMES = ("comparison.md", "comparison.csv", "comparison.json", "comparison.html")


@dataclass(frozen=True, slots=True)
class Section:
    """What the page shows of one task of a scenario; a plot is "" where there is nothing to show."""

    title: str
    measure: str
    by_round: str
    by_bytes: str
    gains: str


def write_files(found: Comparison, folder: Path) -> list[Path]:
    """Write all files of a comparison.

    Returns:
        Where they lie.

    Raises:
        UnsupportedError: if jinja2 or matplotlib is not installed.
        StorageError: if the disk refuses.
    """
    told = json.dumps(_finite(found.table()), indent=1, ensure_ascii=False, allow_nan=False)
    texts = (markdown(found), comma_separated(found), told + "\n", page(found))
    paths = [folder / name for name in NAMES]
    for path, text in zip(paths, texts, strict=True):
        write_atomically(path, text.encode())
    return paths


def page(found: Comparison) -> str:
    """The comparison as HTML.

    Raises:
        UnsupportedError: if jinja2 or matplotlib is not installed.
    """
    need_plots()
    return render(
        "fedstill.simulations.compare",
        "compare.html",
        found=found,
        verdict=_verdict(found),
        columns=columns(found),
        cell=cell,
        subject=subject,
        notes=[text.strip() for text in notes(found)],
        sections=_sections(found),
        critical=plots.critical_plot(found.ranks, name="ranks") if found.ranks else "",
        options=_options(found.options()),
    )


def _verdict(found: Comparison) -> str:
    done = sum(outcome.state == "finished" for outcome in found.outcomes)
    said = f"{count(len(found.plan.methods), 'method')}, {count(len(found.plan.subjects), 'scenario')}, "
    said += f"{count(len(found.plan.seeds), 'seed')}: {count(done, 'run')} finished"
    said += f", {len(found.failed)} failed" if found.failed else ""
    fair = "; NOT with equal budgets" if found.unequal else ", with equal data, students and private training"
    return said + (fair if done else "") + "."


def _sections(found: Comparison) -> list[Section]:
    sections = []
    methods = found.plan.methods
    for place, (name, task) in enumerate(dict.fromkeys((row.subject, row.task) for row in found.rows)):
        own = [one for one in found.figures if (one.subject, one.task) == (name, task)]
        sections.append(
            Section(
                title=f"{name}, {task}" if found.several else name,
                measure=measure_name(own[0].measure),
                by_round=plots.round_plot(own, methods, name=f"round{place}"),
                by_bytes=plots.bytes_plot(own, methods, name=f"bytes{place}"),
                gains=plots.gain_plot(own, methods, name=f"gain{place}"),
            )
        )
    return sections


def _options(told: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, str, str]]:
    return [
        (name, method, ", ".join(f"{key} = {value}" for key, value in own.items()) or "none")
        for name, methods in told.items()
        for method, own in methods.items()
    ]


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
