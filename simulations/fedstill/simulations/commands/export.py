"""`fedstill export`: a client's student or a run's teacher as files that other programs run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.common.errors import ConfigError, RunFolderError, nearest
from fedstill.simulations.console import AsJson, DataDir, data_folder, find_run, make_console, print_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.table import Table
    from torch import Tensor

    from fedstill.client.exporting.export import Exported
    from fedstill.client.exporting.subject import Subject
    from fedstill.client.holdings import Holdings
    from fedstill.common.scenario import Scenario
    from fedstill.server.folder import RunFolder

EXPORTED = Path("exported")
"""Where exported models go unless another folder is named."""

EXAMPLES = (
    "Examples:  fedstill export runs/mine --client client-3  ·  fedstill export runs/mine --int8  ·  "
    "fedstill export STORE/RUN/SITE --scenario mine.toml --out student  ·  "
    "fedstill export store/runs/RUN --site client.toml"
)


class Format(StrEnum):
    """Of the model's file."""

    ONNX = "onnx"
    TORCH_EXPORT = "torch-export"


def export(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A run folder, its name below runs/, or a client's folder of students."),
    ],
    client: Annotated[
        str, typer.Option(help="Whose student of the run. [default: the run's teacher]", show_default=False)
    ] = "",
    task: Annotated[str, typer.Option(help="Which of several tasks. [default: the only one]", show_default=False)] = "",
    form: Annotated[
        Format, typer.Option("--format", help="onnx for onnxruntime, torch-export for torch.")
    ] = Format.ONNX,
    int8: Annotated[bool, typer.Option("--int8", help="Weights as 8-bit integers (onnx).")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder to write. [default: a new one below exported/]", show_default=False)
    ] = None,
    scenario: Annotated[
        str,
        typer.Option(
            help="Of a client's folder outside of a run folder: the scenario's name or TOML file.", show_default=False
        ),
    ] = "",
    site: Annotated[
        Path | None, typer.Option(help="Of a site's folder of students: its client.toml.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Write a trained model with all that its use needs, check it against torch, and time both."""
    from fedstill.client.exporting.export import export as write

    found = _subject(source, client, task, scenario, site, data_folder(data_dir))
    exported = write(found, out or EXPORTED / _name(found, int8), form=str(form), int8=int8)
    if as_json:
        print_json(exported.table())
        return
    console = make_console()
    console.print(_table(exported))
    for line in _lines(exported):
        console.print(line, highlight=False, soft_wrap=True)


def _name(subject: Subject, int8: bool) -> str:
    origin = subject.origin
    parts = (origin.run, origin.client or "teacher", subject.spec.name, "int8" if int8 else "")
    return "-".join(part for part in parts if part)


def _subject(source: Path, client: str, task: str, scenario: str, site: Path | None, data_dir: Path | None) -> Subject:
    from fedstill.client.store import Store

    if source.is_dir() and Store(source).versions():
        if client:
            raise ConfigError(f"--client {client} with a client's folder {source}", "expected one of the two")
        if site is not None and scenario:
            raise ConfigError(f"--scenario {scenario} with --site", "expected one of the two")
        if site is not None:
            return _student(source, task, *_owned(site), source.resolve().name)
        one, data_dir, run = _scenario_of(source, scenario, data_dir)
        return _student(source, task, _simulated(source.resolve().name, one, data_dir), data_dir, run)
    from fedstill.client.site import read_site
    from fedstill.server.folder import open_folder
    from fedstill.simulations.split import site_files
    from fedstill.simulations.trained import student_store

    if scenario or site is not None:
        raise ConfigError("--scenario or --site with a run folder", "a run has its own", "leave it out")
    folder = open_folder(find_run(source))
    data_dir = data_dir or _stored(folder.config())
    if not client:
        return _teacher(folder, task, data_dir)
    store = student_store(folder, client).folder
    if not Store(store).versions():
        known = [path.name for path in folder.clients.iterdir()] if folder.clients.is_dir() else []
        raise RunFolderError(f"student of client '{client}' in {folder.path}", "is not there", nearest(client, known))
    if sites := folder.config().get("sites"):
        own = {read_site(path).name: path for path in site_files(Path(str(sites)))}
        if client not in own:
            raise RunFolderError(f"site '{client}' in {sites}", "is not there", nearest(client, own))
        return _student(store, task, *_owned(own[client]), folder.name)
    return _student(store, task, _simulated(client, folder.scenario(), data_dir), data_dir, folder.name)


def _stored(config: Mapping[str, object]) -> Path | None:
    return Path(str(config["data-dir"])) if config.get("data-dir") else None


def _scenario_of(store: Path, named: str, data_dir: Path | None) -> tuple[Scenario, Path | None, str]:
    """Of a client's folder: the scenario, the data folder, and the run's name."""
    from fedstill.common.scenario import parse
    from fedstill.common.sources import read_table
    from fedstill.server.folder import open_folder

    above = store.resolve().parents[1]
    if named:
        return parse(read_table(named)), data_dir, store.resolve().parent.name
    if not (above / "config.toml").is_file():
        raise ConfigError(
            f"client's folder {store} outside of a run folder", "expected its scenario", "name it with --scenario"
        )
    folder = open_folder(above)
    return folder.scenario(), data_dir or _stored(folder.config()), folder.name


def _simulated(client: str, scenario: Scenario, data_dir: Path | None) -> Holdings:
    from fedstill.client.holdings import simulated
    from fedstill.common.data.federation import federate

    names = federate(scenario, data_dir).names
    if client not in names:
        raise ConfigError(f"client '{client}'", "expected one of the scenario's", nearest(client, names))
    return simulated(scenario, names.index(client), data_dir)


def _owned(path: Path) -> tuple[Holdings, Path]:
    """A site's holdings and its data folder."""
    from fedstill.client.holdings import owned
    from fedstill.client.site import read_site

    site = read_site(path)
    return owned(site), Path(site.data)


def _student(store: Path, task: str, own: Holdings, data_dir: Path | None, run: str) -> Subject:
    from fedstill.client.exporting.subject import Place, student
    from fedstill.client.store import Store

    step, tensors = Store(store).load(max(Store(store).versions()))
    name = _chosen(task, own.tasks)
    weights = _under(tensors, f"{name}.model.", store)
    return student(own.tasks[name], weights, Place(run, own.name, step), folder=data_dir)


def _teacher(folder: RunFolder, task: str, data_dir: Path | None) -> Subject:
    from fedstill.client.exporting.subject import Place, subject
    from fedstill.common.data.federation import federate
    from fedstill.common.data.pack import PublicTask, read_pack
    from fedstill.server.trained import trained_models

    scenario = folder.scenario()
    name = _chosen(task, scenario.tasks)
    found = trained_models(folder)[name]
    pack = folder.config().get("public")
    # Of a run of sites the server has the pack alone.
    share = read_pack(Path(str(pack))).open(name) if pack else federate(scenario, data_dir).tasks[name]
    return subject(
        share.task if isinstance(share, PublicTask) else scenario.tasks[name].task,
        share.spec,
        found.name,
        found.weights,
        Place(folder.path.resolve().name, "", found.step),
        proxy=share.proxy,
        raw=share.raw,
        examples=share.test,
        checked_with="proxy" if share.test is None else "test",
        folder=data_dir,
    )


def _chosen(task: str, known: Iterable[str]) -> str:
    names = tuple(known)
    if task in names or (not task and len(names) == 1):
        return task or names[0]
    raise ConfigError(f"--task '{task}'", f"expected one of {', '.join(names)}", nearest(task, names))


def _under(tensors: Mapping[str, Tensor], prefix: str, store: Path) -> dict[str, Tensor]:
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    if not found:
        raise RunFolderError(f"{store}", f"has no student for '{prefix}'", "finish the run first")
    return found


def _table(exported: Exported) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    measures = list(exported.torch.measures)[:2]
    for heading in ("kB", "µs, 1 sample", "95 %", "µs, 32 samples", "95 %", *measures):
        table.add_column(heading, justify="right")
    ways = f", {exported.way} ranges" if exported.way else ""
    for name, one in (
        ("torch, fp32", exported.torch),
        (f"{exported.card.format}, {exported.card.precision}{ways}", exported.exported),
    ):
        times = [f"{1e6 * value:.0f}" for each in one.latency.values() for value in (each.median, each.p95)]
        table.add_row(name, f"{one.bytes / 1000:.1f}", *times, *(f"{one.measures[key]:.4f}" for key in measures))
    return table


def _lines(exported: Exported) -> Iterable[str]:
    told = exported.agreement
    equal = "" if told.equal is None else f", {told.equal:.2%} equal decisions"
    yield (
        f"against torch on {told.samples} {exported.checked_with} samples: largest difference {told.largest:.2g}, "
        f"deviation {told.deviation:.2g}{equal}"
    )
    card = exported.card
    yield f"{card.model} for task '{card.task}', {card.parameters:,} weights, one thread"
    if card.preparation is None:
        yield "the task does not say how its inputs are prepared: 'fedstill predict' takes prepared ones only"
    yield f"exported  {exported.folder}"
