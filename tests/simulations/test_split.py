"""Every party reads its own files only, and the numbers are those of a simulated run, to the last bit."""

from __future__ import annotations

import csv
import json
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedstill.client.holdings import owned
from fedstill.client.site import read_site
from fedstill.common.data.pack import read_pack
from fedstill.common.errors import ConfigError, DataError, RunFolderError, UnsupportedError
from fedstill.common.scenario import Scenario, parse
from fedstill.common.seeding import numpy_rng
from fedstill.server.folder import RunFolder, new_folder
from fedstill.server.holdings import packed
from fedstill.simulations.run import simulate
from fedstill.simulations.split import PUBLIC, SITES, site_files, split

Small = Callable[..., Scenario]

HOSPITALS = ("east", "north", "south", "west")


def patients(folder: Path) -> None:
    """A table for each hospital: numbers, words, and gaps that differ from hospital to hospital."""
    for place, name in enumerate(HOSPITALS):
        rng = numpy_rng(0, name)
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as stream:
            write = csv.writer(stream)
            write.writerow(["age", "pressure", "ward", "ill"])
            for _ in range(60 + 10 * place):
                age, pressure = rng.normal(60 + 2 * place, 9), rng.normal(130, 15)
                ill = age + pressure / 3 + rng.normal(0, 4) > 105
                gap = rng.random() < 0.1 * (place + 1)
                ward = ("a", "b", "c")[int(rng.integers(2 if name == "east" else 3))]
                write.writerow([f"{age:.1f}", "?" if gap else f"{pressure:.0f}", ward, "yes" if ill else "no"])


def hospitals(**changes: Any) -> Scenario:
    return parse(
        {
            "name": "hospitals",
            "clients": {"count": 4},
            "rounds": {"count": 3, "backoff": 0},
            "training": {"epochs": 2, "batch-size": 16, "learning-rate": 0.02, "adaptive": True},
            "algorithm": {"name": "fedstill"},
            "teacher": {"kind": "model"},
            "codec": "sqrtp",
            "tasks": {
                "ill": {
                    "kind": "tabular",
                    "source": "*.csv",
                    "owner": "file",
                    "models": ["linear-softmax", "mlp-small"],
                    "proxy": {"samples": 60},
                    "partition": {"kind": "natural"},
                }
            },
        }
        | changes
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    patients(folder)
    return folder


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in folder.records()]


def outcome(folder: RunFolder) -> dict[str, Any]:
    return {
        "records": lines(folder),
        "tensors": {path.name: path.read_bytes() for path in (folder.path / "checkpoints").glob("*.safetensors")},
    }


def play(scenario: Scenario, path: Path, **how: Any) -> RunFolder:
    folder = new_folder(path, scenario, data_dir=how.get("data_dir"))
    simulate(scenario, folder, **how)
    return folder


def test_hospitals_with_their_own_files_give_the_same_numbers(tmp_path: Path, data: Path) -> None:
    scenario = hospitals()
    split(scenario, tmp_path / "out", data_dir=data)
    whole = play(scenario, tmp_path / "a" / "run", data_dir=data)
    for path in data.iterdir():
        path.unlink()

    apart = play(scenario, tmp_path / "b" / "run", sites=tmp_path / "out")

    assert outcome(apart) == outcome(whole)
    assert [record["step"] for record in lines(apart)] == [0, 1, 2, 3, 4]
    assert lines(apart)[-1]["accepted"] == list(HOSPITALS)


@pytest.mark.slow
def test_digits_give_the_same_numbers(tmp_path: Path, small: Small) -> None:
    scenario = small(
        {
            "clients.count": 3,
            "algorithm.name": "fedstill",
            "teacher.kind": "model",
            "tasks": {
                "digits": {
                    "kind": "image",
                    "models": ["mlp-small", "cnn-small"],
                    "proxy": {"samples": 300, "per-round": 100},
                    "partition": {"kind": "dirichlet", "alpha": 0.3},
                    "private": 300,
                    "test": 200,
                    "label-space": "own",
                }
            },
        }
    )
    split(scenario, tmp_path / "out", data_dir=None)

    apart = play(scenario, tmp_path / "b" / "run", sites=tmp_path / "out")

    assert outcome(apart) == outcome(play(scenario, tmp_path / "a" / "run"))


def test_what_is_written(tmp_path: Path, data: Path) -> None:
    dealt = split(hospitals(), tmp_path / "out", data_dir=data)

    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        "public/pack.toml",
        "public/ill.safetensors",
        *(f"sites/{name}/{file}" for name in HOSPITALS for file in ("client.toml", "ill.safetensors")),
    }
    east = tmp_path / "out" / SITES / "east"
    assert tomllib.loads((east / "client.toml").read_text()) == {
        "name": "east",
        "public": "../../public",
        "store": "store",
        "policy": {"proxy-digests": [dealt.pack.tasks["ill"].proxy_digest]},
        "tasks": {"ill": {"model": "linear-softmax", "examples": "ill.safetensors"}},
    }
    # Patients are nobody else's business.
    assert stat.S_IMODE(east.stat().st_mode) == 0o700
    assert stat.S_IMODE((east / "ill.safetensors").stat().st_mode) == 0o600
    assert dealt.clients == {name: name for name in HOSPITALS}


def test_sites_have_other_names_and_the_same_examples(tmp_path: Path, data: Path) -> None:
    split(hospitals(), tmp_path / "a", data_dir=data)
    dealt = split(hospitals(), tmp_path / "b", data_dir=data, sites=["d", "c", "b", "a"])

    assert dealt.clients == dict(zip("dcba", HOSPITALS, strict=True))
    mine = (tmp_path / "a" / SITES / "east" / "ill.safetensors").read_bytes()
    assert (tmp_path / "b" / SITES / "d" / "ill.safetensors").read_bytes() == mine
    assert read_site(tmp_path / "b" / SITES / "d" / "client.toml").name == "d"


@pytest.mark.parametrize("sites", [["a", "b"], ["a", "b", "c", "c"], ["a", "b", "c", "../d"], ["a", "b", "c", ".."]])
def test_names_that_do_not_fit(tmp_path: Path, data: Path, sites: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"expected 4 different names|expected the name of a folder"):
        split(hospitals(), tmp_path / "out", data_dir=data, sites=sites)


def test_the_pack_alone(tmp_path: Path, data: Path) -> None:
    split(hospitals(), tmp_path / "out", data_dir=data, public_only=True, labels=False)

    assert [path.name for path in (tmp_path / "out").iterdir()] == [PUBLIC]
    public = packed(hospitals(), tmp_path / "out" / PUBLIC)["ill"]
    assert public.proxy_targets is None
    assert len(public.proxy) == 60
    assert read_pack(tmp_path / "out" / PUBLIC).tasks["ill"].columns == (
        "age",
        "pressure",
        "ward=a",
        "ward=b",
        "ward=c",
    )


def test_nothing_is_written_over(tmp_path: Path, data: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()

    with pytest.raises(RunFolderError, match="exists already"):
        split(hospitals(), tmp_path / "out", data_dir=data)


def test_a_rehearsal_needs_a_site_for_each_client(tmp_path: Path, data: Path) -> None:
    with pytest.raises(RunFolderError, match="write it with fedstill split"):
        site_files(tmp_path)
    split(hospitals(), tmp_path / "out", data_dir=data)
    with pytest.raises(ConfigError, match=r"4 sites in .*: expected 3 \(set clients.count=4\)"):
        play(hospitals(clients={"count": 3}), tmp_path / "run", sites=tmp_path / "out")


def test_a_method_that_needs_all_data_has_none(tmp_path: Path, data: Path) -> None:
    split(hospitals(), tmp_path / "out", data_dir=data)
    central = hospitals(algorithm={"name": "central"}, training={}, codec="raw")

    with pytest.raises(UnsupportedError, match="leaves private data where they are"):
        packed(central, tmp_path / "out" / PUBLIC)


def test_a_scenario_of_another_kind(tmp_path: Path, data: Path, small: Small) -> None:
    split(hospitals(), tmp_path / "out", data_dir=data)

    with pytest.raises(ConfigError, match=r"task 'wine': expected a task of .*known: ill"):
        packed(small(), tmp_path / "out" / PUBLIC)
    image = {"kind": "image", "models": ["mlp-small"], "proxy": {"samples": 10}}
    with pytest.raises(ConfigError, match="task 'ill' of kind 'image': expected 'tabular'"):
        packed(small({"tasks": {"ill": image}}), tmp_path / "out" / PUBLIC)
    table = {"kind": "tabular", "models": ["mlp-small"], "proxy": {"samples": 80, "per-round": 70}}
    with pytest.raises(ConfigError, match=r"per-round=70: expected at most 60"):
        packed(small({"tasks": {"ill": table}}), tmp_path / "out" / PUBLIC)


# A site that reads its own table ------------------------------------------------------------------------------------


def own(folder: Path, **changes: Any) -> Path:
    """A client.toml of a site with a table of its own."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    table = {"name": "mine", "public": str(folder / "out" / PUBLIC), "data": str(folder / "mine"), "tasks": {}}
    lines = [f'{key} = "{value}"' for key, value in table.items() if isinstance(value, str)]
    task = {"model": "mlp-small", "source": "patients.csv", "owner": ""} | changes
    lines += ["[tasks.ill]", *(f"{key} = {json.dumps(value)}" for key, value in task.items())]
    (site / "client.toml").write_text("\n".join(lines))
    return site / "client.toml"


def table(folder: Path, text: str) -> None:
    (folder / "mine").mkdir(exist_ok=True)
    (folder / "mine" / "patients.csv").write_text(text)


def test_a_table_of_its_own_stands_among_the_public_samples(tmp_path: Path, data: Path) -> None:
    split(hospitals(), tmp_path / "out", data_dir=data)
    rows = "".join(f"{'yes' if n % 2 else 'no'},{40 + n},d,{n},?\n" for n in range(18))
    # Columns in another order, one more, a word that nobody has, a value that is never known, no patient of one class.
    table(tmp_path, f"ill,age,ward,room,pressure\nno,50,b,1,120\nno,50,b,1,?\n{rows.replace('yes', 'no')}")

    holdings = owned(read_site(own(tmp_path, holdout=0.25, target="ill")))

    held = holdings.tasks["ill"]
    assert (len(held.data.private), len(held.data.holdout)) == (15, 5)
    assert held.spec == packed(hospitals(), tmp_path / "out" / PUBLIC)["ill"].spec
    assert held.spec.input_shape == (5,)
    inputs = np.concatenate([held.data.private.inputs.numpy(), held.data.holdout.inputs.numpy()])
    # "ward=b" holds in the two first rows; of "d" no column knows anything.
    assert inputs[:, 3].sum() == 2
    assert inputs[:, 2].sum() == inputs[:, 4].sum() == 0
    assert held.data.private.targets.tolist() == [0] * 15
    again = owned(read_site(own(tmp_path, holdout=0.25, target="ill"))).tasks["ill"].data
    assert np.array_equal(again.private.inputs.numpy(), held.data.private.inputs.numpy())


REFUSED = {
    "a column is missing": ("age,ward,ill\n50,a,yes\n", r"without a column for 'pressure'.*known: age, ill, ward"),
    "a column of words without the public ones": (
        "age,pressure,ward,ill\n50,120,A,yes\n",
        r"column 'ward' with 'A': expected the words of the public samples, such as 'a'",
    ),
    "a word among numbers": ("age,pressure,ward,ill\nold,120,a,yes\n", "'old' in row 1, column 'age'"),
    "another class": (
        "age,pressure,ward,ill\n50,120,a,yes\n50,120,a,maybe\n50,120,a,no\n",
        r"class 'maybe': expected a class of the pack",
    ),
    "no row": ("age,pressure,ward,ill\n", "expected at least one row"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_table_that_does_not_fit(tmp_path: Path, data: Path, what: str) -> None:
    split(hospitals(), tmp_path / "out", data_dir=data)
    text, message = REFUSED[what]
    table(tmp_path, text)

    with pytest.raises(DataError, match=message):
        owned(read_site(own(tmp_path)))


def test_an_option_that_the_kind_does_not_have(tmp_path: Path, data: Path) -> None:
    split(hospitals(), tmp_path / "out", data_dir=data)
    table(tmp_path, "age,pressure,ward,ill\n50,120,a,yes\n")

    with pytest.raises(ConfigError, match=r"unknown key 'tasks.ill.delimeter': .*did you mean 'delimiter'"):
        owned(read_site(own(tmp_path, delimeter=";")))
    with pytest.raises(ConfigError, match=r"unknown key 'tasks.ill.hold-out': .*did you mean 'holdout'"):
        owned(read_site(own(tmp_path, **{"hold-out": 0.5})))
    with pytest.raises(ConfigError, match=r"examples='x' beside owner, source"):
        owned(read_site(own(tmp_path, examples="x")))
