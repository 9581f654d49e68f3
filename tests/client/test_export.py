from __future__ import annotations

import builtins
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedstill.client.card import CARD, Card, Origin, read_card
from fedstill.client.exporting import export as exporting
from fedstill.client.exporting.checks import check, compare, decisions, timed
from fedstill.client.exporting.export import export
from fedstill.client.exporting.graphs import write_graph
from fedstill.client.exporting.subject import Place, Subject, student, weights_digest
from fedstill.client.holdings import simulated
from fedstill.client.predicting.session import open_student
from fedstill.client.store import Store
from fedstill.common import __version__
from fedstill.common.data.federation import federate
from fedstill.common.errors import ConfigError, DataError, RunFolderError, UnsupportedError
from fedstill.common.models import build_model
from fedstill.common.scenario import Scenario, dump, to_toml
from fedstill.common.seeding import torch_rng
from fedstill.common.task import TaskSpec
from fedstill.server.folder import RunFolder, begin_folder
from fedstill.simulations import cli
from fedstill.simulations.run import simulate

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def scenario(small: Callable[..., Scenario]) -> Scenario:
    return small({"teacher.kind": "model", "tasks.wine.teacher": "mlp-small"})


@pytest.fixture(scope="module")
def run(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of wines with a teacher, after its last step, 3."""
    folder = begin_folder(tmp_path_factory.mktemp("runs") / "wines", scenario, data_dir=None)
    simulate(scenario, folder)
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs `fedstill …` in a folder of its own; gives what it printed, as JSON if that was asked for."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Any:
        monkeypatch.setattr(sys, "argv", ["fedstill", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        printed = capsys.readouterr()
        assert done.value.code in (0, None), printed.err
        return json.loads(printed.out) if "--json" in words else printed.out

    return call


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs `fedstill …`, which fails; gives the exit code and the line that says why."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["fedstill", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code, capsys.readouterr().err

    return call


def wine(scenario: Scenario, number: int = 1, **weights: Tensor) -> Subject:
    """The untrained student of a client of the small scenario: odd ones have the mlp."""
    holding = simulated(scenario, number, None).tasks["wine"]
    state = build_model(holding.model, holding.spec, seed=3).state_dict()
    return student(holding, {**state, **weights}, Place("run", f"client-{number}", 2), folder=None)


# The command ---------------------------------------------------------------------------------------------------------


def test_the_student_of_a_client(run: RunFolder, scenario: Scenario, command: Command, tmp_path: Path) -> None:
    told = command("export", run.path, "--client", "client-1", "--out", "out", "--json")
    assert told["folder"] == "out"
    assert told["agreement"] == {**told["agreement"], "checked-with": "test", "equal": 1.0, "samples": 35}
    assert told["agreement"]["largest"] < 1e-5
    for one in (told["torch"], told["exported"]):
        assert 0 < one["seconds"]["1"]["median"] <= one["seconds"]["1"]["p95"]
        assert one["seconds"].keys() == {"1", "32"}
    # 13 · 64 + 64 + 64 · 3 + 3 weights of 4 bytes.
    assert told["torch"]["bytes"] == 4 * 1091
    assert told["exported"]["bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
    last = run.records()[-1]["tasks"]["wine"]["clients"]["client-1"]
    assert told["exported"]["measures"]["accuracy"] == pytest.approx(last["final.accuracy"])

    card = read_card(tmp_path / "out")
    share = federate(scenario, None).tasks["wine"]
    assert (card.task, card.kind, card.output, card.modality) == ("wine", "tabular", "categorical", "tabular")
    assert (card.classes, card.input_shape, card.input_type) == (share.spec.classes, (13,), "float32")
    assert (card.model, card.parameters, card.format, card.precision) == ("mlp-small", 1091, "onnx", "fp32")
    _, tensors = Store(run.clients / "client-1").load(3)
    weights = {key.removeprefix("wine.model."): value for key, value in tensors.items() if ".model." in key}
    assert card.origin.weights == weights_digest(weights)
    assert replace(card.origin, weights="") == replace(
        card.origin, fedstill=__version__, run="wines", client="client-1", step=3, weights="", proxy=share.proxy.digest
    )


def test_the_teacher_of_a_run(run: RunFolder, command: Command) -> None:
    told = command("export", run.path, "--json")
    card = read_card(Path(told["folder"]))
    assert told["folder"] == "exported/wines-teacher-wine"
    assert (card.origin.client, card.origin.step, card.model) == ("", 3, "mlp-small")
    last = run.records()[-2]["tasks"]["wine"]["server"]
    assert told["exported"]["measures"]["accuracy"] == pytest.approx(last["accuracy"])


def test_a_clients_folder(
    run: RunFolder, scenario: Scenario, command: Command, refused: Command, tmp_path: Path
) -> None:
    inside = command("export", run.clients / "client-2", "--json")
    elsewhere = tmp_path / "store" / "wines" / "client-2"
    elsewhere.mkdir(parents=True)
    for path in Store(run.clients / "client-2").versions().values():
        (elsewhere / path.name).write_bytes(path.read_bytes())
    code, line = refused("export", elsewhere)
    assert (code, "expected its scenario (name it with --scenario)" in line) == (2, True)
    (tmp_path / "mine.toml").write_text(to_toml(dump(scenario)))
    outside = command("export", elsewhere, "--scenario", "mine.toml", "--out", "other", "--json")
    cards = [read_card(Path(told["folder"])) for told in (inside, outside)]
    assert cards[0].origin == cards[1].origin
    assert inside["exported"]["measures"] == outside["exported"]["measures"]


def test_what_it_prints(run: RunFolder, command: Command) -> None:
    printed = command("export", run.path, "--client", "client-1", "--int8")
    assert "torch, fp32" in printed
    assert "onnx, int8, dynamic ranges" in printed
    assert "on 35 test samples: largest difference" in printed
    assert "exported  exported/wines-client-1-wine-int8" in printed


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--client", "client-7"], 4, "student of client 'client-7'.*did you mean 'client-"),
        (["--task", "beer"], 2, "--task 'beer': expected one of wine"),
        (["--scenario", "digits"], 2, "a run has its own"),
        (["--format", "torch-export", "--int8"], 2, "packed integer weights \\(use --format onnx\\)"),
        (["--out", "."], 4, "exists already"),
    ],
)
def test_what_is_refused(run: RunFolder, refused: Command, words: list[str], code: int, message: str) -> None:
    Path("something").touch()
    found, line = refused("export", run.path, *words)
    assert found == code
    assert re.search(message, line), line


def test_a_run_before_its_first_round(scenario: Scenario, refused: Command, tmp_path: Path) -> None:
    folder = begin_folder(tmp_path / "begun", scenario, data_dir=None)
    code, line = refused("export", folder.path)
    assert (code, "expected a committed round" in line) == (4, True)


def test_the_average_of_a_method_that_sends_weights(
    small: Callable[..., Scenario], command: Command, tmp_path: Path
) -> None:
    changes = {"algorithm": {"name": "fedavg"}, "tasks.wine.models": "mlp-small", "tasks.wine.teacher": "mlp-large"}
    scenario = small({**changes, "rounds.count": 1, "alone": False})
    folder = begin_folder(tmp_path / "averaged", scenario, data_dir=None)
    simulate(scenario, folder)
    told = command("export", folder.path, "--json")
    assert read_card(Path(told["folder"])).model == "mlp-small"
    assert told["exported"]["measures"]["accuracy"] == pytest.approx(
        folder.records()[-1]["tasks"]["wine"]["server"]["accuracy"]
    )


def test_a_run_without_a_model_on_the_server(small: Callable[..., Scenario], refused: Command, tmp_path: Path) -> None:
    scenario = small({"teacher.kind": "consensus", "rounds.count": 1, "alone": False})
    folder = begin_folder(tmp_path / "plain", scenario, data_dir=None)
    code, line = refused("export", folder.path)
    assert (code, "teacher 'consensus'" in line, "(take a client's student" in line) == (2, True, True)
    simulate(scenario, folder)
    code, line = refused("export", folder.clients / "client-1", "--client", "client-1")
    assert (code, "expected one of the two" in line) == (2, True)


# The files -----------------------------------------------------------------------------------------------------------


def test_torchs_own_format(scenario: Scenario, tmp_path: Path) -> None:
    found = export(wine(scenario), tmp_path / "out", form="torch-export")
    assert found.card.file == "model.pt2"
    module = torch.export.load(tmp_path / "out" / "model.pt2").module()
    inputs = found.card.input_shape
    assert module(torch.zeros(9, *inputs)).shape == (9, 3)


def test_nothing_of_this_machine_is_in_the_file(scenario: Scenario, tmp_path: Path) -> None:
    export(wine(scenario), tmp_path / "out")
    content = (tmp_path / "out" / "model.onnx").read_bytes()
    assert b".py" not in content
    assert str(Path.cwd()).encode() not in content
    assert len(content) < 4 * 1091 + 1500


def test_the_same_student_gives_the_same_bytes(scenario: Scenario, tmp_path: Path) -> None:
    first, second = (export(wine(scenario), tmp_path / name).card for name in "ab")
    assert first.files == second.files


def test_a_file_that_does_not_answer_as_the_model_is_not_kept(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_graph

    def other(model: nn.Module, samples: Tensor, path: Path, *, form: str) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)
        write(model, samples, path, form=form)
        with torch.no_grad():
            next(model.parameters()).div_(1.01)

    monkeypatch.setattr(exporting, "write_graph", other)
    with pytest.raises(UnsupportedError, match=r"differs by 0\.0.*35 samples.*equal decisions"):
        export(wine(scenario), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Undecided(nn.Module):
    """Its way depends on what it reads."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * 2 if float(inputs.sum()) > 0 else inputs


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_a_model_whose_way_depends_on_its_inputs(scenario: Scenario, tmp_path: Path, form: str) -> None:
    subject = replace(wine(scenario), model=Undecided())
    with pytest.raises(UnsupportedError, match=f"model 'Undecided' as {form}: cannot be traced into a graph"):
        export(subject, tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()


def test_a_format_that_is_not_known(scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format 'tflite': expected one of onnx, torch-export"):
        export(wine(scenario), tmp_path / "out", form="tflite")


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_without_the_extra(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    subject, real = wine(scenario), builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf"package '{package}': is not installed \(pip install 'fedstill\[export\]'"):
        export(subject, tmp_path / "out")


def test_an_encoder_in_hugging_faces_format(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=39, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    spec = TaskSpec("t", "categorical", "text", ("a", "b", "c"), (6,), 40, tokenizer="x")
    model = build_model(f"hf-{tmp_path / 'bert'}", spec, seed=1).eval()
    ids = torch.randint(0, 40, (12, 6), generator=torch_rng(0, "ids"))
    task: Any = type("Task", (), {"name": "text", "measure": lambda *_: {}})()
    subject = Subject(model, "hf-bert", task, spec, None, Origin("", "", "", 0, "", ""), ids, ids, None, "proxy")
    export(subject, tmp_path / "out")
    with torch.no_grad():
        wanted = model(ids).numpy()
    np.testing.assert_allclose(open_student(tmp_path / "out").run(ids.numpy()), wanted, atol=1e-4)


# The card ------------------------------------------------------------------------------------------------------------


def card_of(folder: Path, **changes: Any) -> None:
    table = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(table | changes))


def test_a_card_is_read_as_it_was_written(scenario: Scenario, tmp_path: Path) -> None:
    written: Card = export(wine(scenario), tmp_path / "out").card
    assert read_card(tmp_path / "out") == written
    assert isinstance(written.preparation, type(read_card(tmp_path / "out").preparation))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"card": 2}, "expected a card of version 1"),
        ({"classes": None}, "is damaged"),
        ({"further": 1}, "is damaged"),
        ({"preparation": {"kind": "spells"}}, "kind 'spells' is not known"),
        ({"files": {"../model.onnx": ""}, "file": "../model.onnx"}, "expected a file beside the card"),
        ({"files": {"gone.onnx": ""}, "file": "gone.onnx"}, "cannot be read"),
        ({"file": "../other.onnx"}, "expected a file that the card names with its digest"),
        ({"reader": {"kind": "sentences", "tokenizer": "t.json", "length": 1, "target_length": 1}}, "file 't.json'"),
    ],
)
def test_a_card_that_is_damaged(scenario: Scenario, tmp_path: Path, changes: Mapping[str, Any], message: str) -> None:
    export(wine(scenario), tmp_path / "out")
    card_of(tmp_path / "out", **changes)
    with pytest.raises(DataError, match=message):
        read_card(tmp_path / "out")


def test_one_public_sample_is_enough(scenario: Scenario, tmp_path: Path) -> None:
    subject = wine(scenario)
    export(replace(subject, calibration=subject.calibration[:1]), tmp_path / "out")
    assert len(open_student(tmp_path / "out").run(subject.checked.numpy())) == 35


def test_a_model_that_was_changed(scenario: Scenario, tmp_path: Path) -> None:
    export(wine(scenario), tmp_path / "out")
    path = tmp_path / "out" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="is not the file that was exported"):
        open_student(tmp_path / "out")


def test_no_card(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected card\.json there: No such file"):
        read_card(tmp_path)
    (tmp_path / CARD).write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        read_card(tmp_path)


def test_the_digest_of_weights_knows_names_types_shapes_and_numbers() -> None:
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    assert weights_digest(one) == weights_digest(dict(reversed(one.items())))
    others: list[dict[str, Tensor]] = [
        {"a": one["a"], "c": one["b"]},
        {"a": one["a"].double(), "b": one["b"]},
        {"a": one["a"][:, None], "b": one["b"]},
        {"a": one["a"] + 1, "b": one["b"]},
    ]
    assert len({weights_digest(other) for other in [one, *others]}) == 5


# The check and the clock ---------------------------------------------------------------------------------------------


def test_agreement_by_hand() -> None:
    wanted = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 2.0]], np.float32)
    found = wanted.copy()
    found[1] = [0.5, 0.2]
    told = compare(wanted, found, output="categorical")
    assert (told.samples, told.equal) == (4, 0.75)
    assert told.largest == pytest.approx(0.8)
    # Mean square of 0.5 and 0.8 among 8 numbers; the outputs' own variance is 10 / 8 − (6 / 8)².
    assert told.deviation == pytest.approx(((0.25 + 0.64) / 8) ** 0.5 / (10 / 8 - (6 / 8) ** 2) ** 0.5)


def test_decisions_by_kind() -> None:
    outputs = np.array([[-1.0, 2.0, 3.0, 9.0, 9.0, 9.0]], np.float32)
    found = {output: decisions(outputs, output) for output in ("categorical", "multi-label", "dense", "regression")}
    assert found["regression"] is None
    told = {output: None if one is None else one.tolist() for output, one in found.items()}
    assert told["categorical"] == [3]
    assert told["multi-label"] == [[False, True, True, True, True, True]]
    assert told["dense"] == [[False, True]]


@pytest.mark.parametrize(
    ("change", "precision", "sound"),
    [
        (5e-5, "fp32", True),
        (2e-3, "fp32", False),
        (2e-3, "int8", True),
        (5.0, "int8", False),
    ],
)
def test_what_is_sound(change: float, precision: str, sound: bool) -> None:
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((50, 4)).astype(np.float32)
    found = wanted + change * rng.standard_normal((50, 4)).clip(-1, 1).astype(np.float32)
    agreement = compare(wanted, found.astype(np.float32), output="categorical")
    if sound:
        check(agreement, wanted, output="categorical", precision=precision)
    else:
        with pytest.raises(UnsupportedError, match="exported model that differs"):
            check(agreement, wanted, output="categorical", precision=precision)


def test_outputs_that_are_none() -> None:
    one = np.ones((2, 3), np.float32)
    with pytest.raises(UnsupportedError, match=r"expected finite numbers of shape \(2, 3\)"):
        compare(one, one[:, :2], output="categorical")
    with pytest.raises(UnsupportedError, match="expected finite numbers"):
        compare(one, one * np.nan, output="categorical")


def test_calls_that_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A call that takes 1, 2, … 20 seconds, of which the first two do not count.
    clock = {"now": 0.0, "call": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])

    def call() -> None:
        clock["call"] += 1
        clock["now"] += clock["call"]

    told = timed(call, calls=18, most=1e9)
    assert clock["call"] == 19
    assert told.median == 10.5
    assert told.p95 == pytest.approx(18.15)
    timed(call, calls=1000, most=0.0)
    assert clock["call"] == 19 + 100 + 5


def test_a_run_folder_that_is_missing(refused: Command) -> None:
    code, line = refused("export", "no-such-run")
    assert (code, "run 'no-such-run'" in line) == (RunFolderError.exit_code, True)
