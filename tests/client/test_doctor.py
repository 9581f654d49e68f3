"""The site doctor: every fault is found, told apart, and has its cure."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedstill.client.connection import Endpoint
from fedstill.client.doctor import examine_site
from fedstill.common.checkup import Check
from fedstill.common.scenario import Scenario

if TYPE_CHECKING:
    from tests.client.conftest import Party

Make = Callable[..., "Party"]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", "1")
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "1")


def look(path: Path, to: Endpoint | None = None) -> dict[str, Check]:
    checks = examine_site(path, to)
    for check in checks:
        assert (check.state == "right") or check.cure, check
        assert check.found
    return {check.what: check for check in checks}


def states(checks: Mapping[str, Check]) -> set[str]:
    return {what for what, check in checks.items() if check.state != "right"}


def test_a_site_in_order(party: Make) -> None:
    one = party()

    found = look(one.path)

    assert states(found) == set()
    assert {"fedstill", "flwr", "torch", "client.toml", "public pack", "store", "ledger", "memory"} <= found.keys()
    assert "scikit-learn" not in found  # a site needs none of what a simulation needs
    assert found["data of wine"].found == ("21 examples to learn from, 5 kept aside, 40 public samples; 3 of 3 classes")
    assert found["model of wine"].found == "mlp-small, 1,091 parameters"
    assert found["pinned samples of wine"].found == one.pack.tasks["wine"].proxy_digest
    assert found["ledger"].found == "0 orders in the last 24 hours, without a limit"
    assert not list(one.store.rglob(".doctor*"))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    found = look(tmp_path / "client.toml")

    assert states(found) == {"client.toml"}
    assert found["client.toml"].found.endswith("cannot be read: No such file or directory")


def test_a_wrong_key(party: Make) -> None:
    one = party()
    one.change(policy={"rounds-a-day": 3})

    check = look(one.path)["client.toml"]

    assert (check.state, check.cure) == ("wrong", "did you mean 'rounds-per-day'?")


def test_a_file_that_everybody_may_write(party: Make) -> None:
    one = party()
    one.path.chmod(0o666)

    assert look(one.path)["client.toml"].cure == f"chmod o-w {one.path}"


def test_the_pack(party: Make) -> None:
    one = party()
    index = one.pack.folder / "pack.toml"
    text = index.read_text()
    index.write_text(text.replace('fedstill = "0.1.0"', 'fedstill = "0.9.0"'))
    assert states(look(one.path)) == {"public pack"}
    index.write_text("?")
    assert look(one.path)["public pack"].state == "wrong"
    index.write_text(text)
    one.change(tasks={"wien": {"model": "mlp-small", "examples": "x"}})
    assert look(one.path)["public pack"].cure == "did you mean 'wine'?"


def test_pins(party: Make) -> None:
    one = party()
    digest = one.pack.tasks["wine"].proxy_digest
    one.change(policy={"proxy-digests": []})
    check = look(one.path)["pinned samples of wine"]
    assert check.state == "note"
    assert f'set policy.proxy-digests = ["{digest}"]' in check.cure
    one.change(policy={"proxy-digests": ["0" * 16]})
    assert look(one.path)["pinned samples of wine"].state == "wrong"


def test_data(party: Make) -> None:
    one = party()
    path = one.folder / "wine.safetensors"
    whole = path.read_bytes()
    path.unlink()
    check = look(one.path)["data of wine"]
    assert (check.state, "model of wine" in look(one.path)) == ("wrong", False)
    path.write_bytes(whole)
    one.change(tasks={"wine": {"model": "mlp-smal", "examples": "wine.safetensors"}})
    assert look(one.path)["model of wine"].cure == "did you mean 'mlp-small'?"
    one.change(tasks={"wine": {"model": "cnn-small", "examples": "wine.safetensors"}})
    assert look(one.path)["model of wine"].state == "wrong"


def test_classes_that_a_site_does_not_have(party: Make) -> None:
    partition = {"kind": "pathological", "classes": 2, "minimum": 1}
    one = party({"tasks.wine.partition": partition, "tasks.wine.holdout": 0.0})

    check = look(one.path)["data of wine"]

    assert check.state == "note"
    assert "2 of 3 classes, none of class_" in check.found


def test_an_own_source_without_examples_kept_aside(party: Make) -> None:
    one = party()
    one.change(tasks={"wine": {"model": "mlp-small", "source": "wine", "holdout": 0.0}})

    check = look(one.path)["data of wine"]

    assert (check.state, check.cure) == ("note", "set the task's 'holdout'")
    assert check.found.startswith("178 examples to learn from, 0 kept aside")


def test_a_tokenizer(tmp_path: Path, small: Callable[..., Scenario], party: Make) -> None:
    from fedstill.common.data.tokenizer import train_bpe

    texts = [f"{word} {other}" for word in ("good", "bad", "fine") for other in ("news", "day", "words")]
    train_bpe(texts, 260, tmp_path / "tokenizer.json")
    rows = "\n".join(f'{row % 3},"{texts[row % 9]} {row}"' for row in range(200))
    (tmp_path / "texts.csv").write_text(f"label,text\n{rows}")
    task = {
        "kind": "text",
        "source": str(tmp_path / "texts.csv"),
        "tokenizer": str(tmp_path / "tokenizer.json"),
        "models": ["bag-small"],
        "proxy": {"samples": 40},
    }
    one = party({"tasks": {"news": task}})

    # The pack has the tokenizer with it.
    (tmp_path / "tokenizer.json").unlink()
    found = look(one.path)
    assert states(found) == set()
    assert found["tokenizer of news"].found == one.pack.tasks["news"].tokenizer[:12]
    one.change(tasks={"news": {"model": "bag-small", "source": str(tmp_path / "texts.csv")}})
    assert look(one.path)["data of news"].found.startswith("160 examples to learn from, 40 kept aside")
    own = one.pack.folder / "news-tokenizer.json"
    own.write_text(own.read_text() + "\n")
    found = look(one.path)
    assert (found["tokenizer of news"].state, found["tokenizer of news"].cure) == ("wrong", "fetch the pack again")
    own.unlink()
    assert look(one.path)["tokenizer of news"].state == "wrong"


def test_the_store(party: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = party()
    (one.folder / "file").touch()
    one.change(store="file/store")
    assert look(one.path)["store"].state == "wrong"
    one.change(store="store")
    look(one.path)
    one.store.chmod(0o755)
    assert look(one.path)["store"].cure == f"chmod 700 {one.store}"
    monkeypatch.setattr("fedstill.client.doctor.shutil.disk_usage", lambda _: Usage(10**12, 10**12, 10**6))
    assert look(one.path)["store"].state == "wrong"
    program = (
        "import sys\nfrom pathlib import Path\nfrom fedstill.common.lock import only_process\n"
        "with only_process(Path(sys.argv[1])):\n    print('here', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(one.store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        check = look(one.path)["store"]
        process.stdin.close()
    assert (check.state, check.found) == ("note", f"process {process.pid} works in {one.store} now")


def test_the_ledger(party: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = party()
    one.change(policy={"rounds-per-day": 2})
    one.answer(one.order(1))
    assert look(one.path)["ledger"].found == "1 orders in the last 24 hours, 2 are allowed"
    one.answer(one.order(2))
    check = look(one.path)["ledger"]
    assert (check.state, "no fault" in check.cure) == ("note", True)
    path = one.store / "ledger" / "run.jsonl"
    ahead = time.time() + 3 * 86400
    path.write_text(f'{{"step": "round 1", "time": {ahead}, "order": "x"}}\n')
    check = look(one.path)["ledger"]
    assert check.state == "note"
    assert "1 of them up to 3.0 days ahead of the clock" in check.found
    one.change(policy={"rounds-per-day": 1})
    assert look(one.path)["ledger"].state == "wrong"
    path.write_text("?\n")
    assert look(one.path)["ledger"].state == "wrong"


def test_memory(party: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = party()
    one.change(resources={"memory": 10**6})
    assert look(one.path)["memory"].state == "wrong"
    one.change(resources={"memory": 10**15})
    assert look(one.path)["memory"].state == "note"
    monkeypatch.setattr("fedstill.client.doctor._available", lambda: 10**8)
    one.change(resources={"memory": 0})
    assert look(one.path)["memory"].state == "wrong"


@pytest.mark.parametrize(("limit", "state"), [("max", "right"), (str(2**63 - 4096), "right"), (str(10**7), "wrong")])
def test_a_containers_memory(
    party: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, state: str
) -> None:
    told = tmp_path / "memory.max"
    told.write_text(f"{limit}\n")
    monkeypatch.setattr("fedstill.client.doctor.CONTAINER", (tmp_path / "not there", told))
    assert look(party().path)["memory"].state == state
