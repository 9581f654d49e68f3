"""client.toml: what it may say, and that nothing else has a say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedstill.client.app import client_app
from fedstill.client.guard import Guard
from fedstill.client.holdings import owned
from fedstill.client.policy import USUAL, Policy
from fedstill.client.site import VARIABLE, Resources, parse_site, read_site
from fedstill.common import introduction, records
from fedstill.common.errors import ConfigError, DataError, Reason
from fedstill.common.messages import ROUND, Description, Refusal
from fedstill.common.scenario import Scenario, dump, to_toml

if TYPE_CHECKING:
    from tests.client.conftest import Party

Make = Callable[..., "Party"]

TABLE: dict[str, Any] = {"name": "north", "public": "pack", "tasks": {"ill": {"model": "mlp-small", "examples": "x"}}}


def test_what_it_says_if_it_says_little(tmp_path: Path) -> None:
    site = parse_site(TABLE, tmp_path)

    assert (site.name, site.public, site.store) == ("north", str(tmp_path / "pack"), str(tmp_path / "store"))
    assert Path(site.data) == tmp_path
    assert (site.policy, site.resources, site.log_level) == (Policy(), Resources(), "info")
    assert site.policy.knowledge == USUAL
    assert "embeddings" not in USUAL
    absolute = parse_site({**TABLE, "store": "/var/lib/fedstill", "data": "patients"}, tmp_path)
    assert (absolute.store, absolute.data) == ("/var/lib/fedstill", str(tmp_path / "patients"))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a key that is none": ({"stroe": "x"}, r"unknown key 'client.toml.stroe': .*did you mean 'store'"),
    "a key of the policy": (
        {"policy": {"round-per-day": 3}},
        r"unknown key 'policy.round-per-day'.*did you mean 'rounds-per-day'",
    ),
    "a key of the resources": ({"resources": {"thread": 3}}, r"unknown key 'resources.thread'.*did you mean 'threads'"),
    "knowledge": ({"policy": {"knowledge": ["soft-label"]}}, r"holds 'soft-label': .*did you mean 'soft-labels'"),
    "a codec": ({"policy": {"codecs": ["sqrt"]}}, r"holds 'sqrt': .*did you mean 'sqrtp'"),
    "a type": ({"policy": {"rounds-per-day": "many"}}, r"rounds-per-day = 'many': input should be a valid integer"),
    "a negative number": ({"policy": {"message-bytes": -1}}, r"policy_message_bytes=-1: expected >= 0"),
    "no thread": ({"resources": {"threads": 0}}, r"resources_threads=0: expected >= 1"),
    "no name": ({"name": ""}, "name = '': expected 1 to 100 printable"),
    "a name with a line break": ({"name": "a\nb"}, "expected 1 to 100 printable"),
    "no task": ({"tasks": {}}, "expected at least one task"),
    "a task that is no table": ({"tasks": {"ill": "x"}}, r"expected tables \[tasks.NAME\]"),
    "no model": ({"tasks": {"ill": {"examples": "x"}}}, "tasks.ill without 'model'"),
    "all kept aside": ({"tasks": {"ill": {"model": "m", "holdout": 1.0}}}, "holdout=1.0: expected 0 <= value < 1"),
    "two sources": ({"tasks": {"ill": {"model": "m", "examples": "x", "source": "y"}}}, "examples='x' beside source"),
    "a level": ({"log-level": "loud"}, "log-level = 'loud': input should be 'debug'"),
    "a path that is none": ({"store": 3}, "store = 3: input should be a valid string"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_it_may_not_say(what: str, tmp_path: Path) -> None:
    changes, message = WRONG[what]
    with pytest.raises(ConfigError, match=message):
        parse_site({**TABLE, **changes}, tmp_path)


@pytest.mark.parametrize("key", ["name", "public", "tasks"])
def test_what_it_has_to_say(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"client.toml without '{key}'"):
        parse_site({name: value for name, value in TABLE.items() if name != key}, tmp_path)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_site(tmp_path / "client.toml")
    (tmp_path / "client.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="is no TOML"):
        read_site(tmp_path / "client.toml")


def test_the_server_has_no_say(party: Make, small: Callable[..., Scenario], tmp_path: Path) -> None:
    one = party()
    before = one.describe()
    assert isinstance(before, Description)
    assert before.client == "client-1"
    assert before.tasks["wine"].model == "mlp-small"

    other = dump(small({"tasks.wine.models": ["linear-softmax"], "tasks.wine.proxy": {"samples": 30}}))
    one.run_config = {
        "toml": to_toml(other),
        "data-dir": str(tmp_path / "elsewhere"),
        "set": "tasks.wine.models=linear-softmax seed=9",
        "seed": 9,
        "public": str(tmp_path),
        "site": "/etc/passwd",
        "store": str(tmp_path / "elsewhere"),
        "policy.rounds-per-day": 0,
    }

    assert one.describe() == before
    assert one.answer(one.order(1)).tasks["wine"].knowledge is not None
    assert one.students() == ["student-000001"]
    assert not (tmp_path / "elsewhere").exists()


def test_a_node_without_a_number_takes_the_environments(party: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = party()
    own = one.context()
    del own.node_config["site"]
    asked = one.message("query.describe", introduction.write_question(_question()))
    monkeypatch.setenv(VARIABLE, str(one.path))

    with pytest.raises(ConfigError, match="expected a known scenario"):
        # A number is that of a client of a simulated run, and this run has no such scenario.
        client_app()(asked, _with(own, scenario="no-such-scenario"))
    del own.node_config["partition-id"]
    told = introduction.read_description(client_app()(asked, own).content)

    assert told.client == "client-1"


def _question() -> Any:
    from fedstill.common import __version__
    from fedstill.common.messages import Question

    return Question(__version__, {})


def _with(context: Any, **run_config: Any) -> Any:
    context.run_config = run_config
    return context


def test_a_site_lets_out_no_more_than_the_apps_own_guard(party: Make) -> None:
    one = party()
    strict = client_app(guard=Guard(frozenset({"relations"})))

    reply = strict(one.message(ROUND, records.write_order(one.order(1))), one.context())

    told = introduction.read_refusal(reply.content)
    assert told is not None
    assert (told.reason, "lets out relations" in told.detail or "lets out nothing" in told.detail) == (
        Reason.REFUSED,
        True,
    )


def test_tasks_that_only_the_site_has_are_left_out(party: Make) -> None:
    one = party({"tasks.more": {"kind": "tabular", "models": ["mlp-small"], "proxy": {"samples": 40}}})
    told = one.describe()
    assert isinstance(told, Description)
    assert set(told.tasks) == {"wine", "more"}

    question = introduction.read_question(introduction.write_question(_of(one, "wine")))

    fewer = one.describe(question)
    assert isinstance(fewer, Description)
    assert set(fewer.tasks) == {"wine"}


def _of(one: Party, *tasks: str, **changes: Any) -> Any:
    """What a server with those tasks says of itself."""
    from dataclasses import replace

    from fedstill.common import __version__
    from fedstill.common.handshake import schema
    from fedstill.common.messages import Question

    held = owned(one.site).tasks
    schemas = {name: replace(schema(held[name].whole, held[name].proxy.digest), **changes) for name in tasks}
    return Question(__version__, schemas)


DIFFERENT: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "output": ({"output": "regression"}, Reason.TASK, "output kind regression: expected categorical"),
    "modality": ({"modality": "text"}, Reason.TASK, "modality text: expected tabular"),
    "tokenizer": ({"tokenizer": "f" * 64}, Reason.TOKENIZER, "tokenizer ffffffffffff: expected none"),
    "shape": ({"input_shape": (12,)}, Reason.SHAPE, "input shape (12,): expected (13,)"),
    "positions": ({"positions": (3,)}, Reason.SHAPE, "output positions (3,): expected ()"),
    "classes": ({"classes": "0" * 16}, Reason.CLASSES, "label space 0000000000000000: expected"),
    "proxy": ({"proxy_digest": "0" * 16}, Reason.PROXY, "proxy set 000000000000: expected"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_server_whose_task_differs(party: Make, what: str, caplog: pytest.LogCaptureFixture) -> None:
    changes, reason, message = DIFFERENT[what]

    told = party().describe(_of(party(folder="other"), "wine", **changes))

    assert isinstance(told, Refusal)
    assert told.reason is reason
    assert told.detail.startswith(f"the server's task 'wine': {message}")
    assert "give both sides the same public pack" in told.detail
    # The site's own log has it, too.
    assert told.detail in caplog.text
    assert "node 7" in caplog.text


def test_a_server_without_a_task_of_the_site(party: Make) -> None:
    from dataclasses import replace

    one = party()
    question = _of(one, "wine")

    told = one.describe(replace(question, tasks={"beer": question.tasks["wine"]}))

    assert told == Refusal(Reason.TASK, "tasks beer: expected one of wine (name the tasks alike on both sides)")


@pytest.mark.parametrize(("version", "fits"), [("0.1.7", True), ("0.1.0.dev3", True), ("0.2.0", False), ("1", False)])
def test_a_server_with_another_version(party: Make, version: str, fits: bool) -> None:
    from dataclasses import replace

    one = party()

    told = one.describe(replace(_of(one, "wine"), software=version))

    assert isinstance(told, Description) == fits
    if isinstance(told, Refusal):
        assert told.reason is Reason.VERSION
        assert f"fedstill {version}: expected 0.1.x" in told.detail


def test_an_order_of_another_version(party: Make) -> None:
    one = party()
    content = records.write_order(one.order(1))
    content.config_records["fedstill"]["software"] = "3.0.0"

    reply = client_app()(one.message(ROUND, content), one.context())

    told = introduction.read_refusal(reply.content)
    assert told is not None
    assert told.reason is Reason.VERSION
    assert one.students() == []


def test_what_a_reader_says_of_private_data_stays_there(
    party: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = party()
    columns = one.pack.tasks["wine"].columns
    rows = [(*columns, "class"), ("1", "Mrs Smith", *"1" * 11, "class_0"), (*"1" * 13, "class_1")]
    (tmp_path / "patients.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    one.change(tasks={"wine": {"model": "mlp-small", "source": str(tmp_path / "patients.csv")}})

    told = one.describe()

    assert told == Refusal(
        Reason.CLIENT_ERROR,
        "the site's client.toml or data cannot be used: its own log says why "
        "(let its administrator run fedstill doctor --site)",
    )
    assert "Mrs Smith" in caplog.text


def test_what_nobody_foresaw_is_told_by_its_name_alone(
    party: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = party()

    def fail(*_: object) -> None:
        raise ValueError("could not convert string to float: 'Mrs Smith'")

    monkeypatch.setattr("fedstill.client.work.Worker.round", fail)

    assert one.refusal(one.order(1)) == Refusal(Reason.CLIENT_ERROR, "ValueError: the site's own log says more")
    assert "Mrs Smith" in caplog.text
    assert "Traceback" in caplog.text


# The files of the pack and of the site --------------------------------------------------------------------------------


def _damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_a_damaged_pack(party: Make) -> None:
    one = party()
    _damaged(one.pack.folder / "wine.safetensors")

    with pytest.raises(DataError, match=r"expected the file whose SHA-256 is .*fetch the pack again"):
        owned(one.site)


def test_a_pack_without_its_samples(party: Make) -> None:
    one = party()
    (one.pack.folder / "wine.safetensors").unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        owned(one.site)
    (one.pack.folder / "pack.toml").unlink()
    with pytest.raises(DataError, match="name the folder of a pack"):
        owned(one.site)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format = 1", "format = 2", "of format 2: expected 1"),
        ('kind = "tabular"', 'kind = "image"', "did you mean|expected a key of this table"),
        (
            'file = "wine.safetensors"',
            'file = "../wine.safetensors"',
            "expected the name of a file in the pack's folder",
        ),
        ('output = "categorical"', 'outptu = "categorical"', "did you mean 'output'"),
        ("samples", "samples = ", "is no TOML"),
    ],
)
def test_an_index_that_is_none(party: Make, old: str, new: str, message: str) -> None:
    one = party()
    index = one.pack.folder / "pack.toml"
    text = index.read_text()
    index.write_text(text.replace(old, new) if old in text else new)

    with pytest.raises((DataError, ConfigError), match=message):
        owned(one.site)


def test_a_pack_that_other_software_would_read_otherwise(party: Make) -> None:
    one = party()
    index = one.pack.folder / "pack.toml"
    digest = one.pack.tasks["wine"].proxy_digest
    index.write_text(index.read_text().replace(digest, "0" * 16))

    with pytest.raises(DataError, match=r"expected 0000000000000000.*install fedstill 0\.1\.0, which made the pack"):
        owned(one.site)


def test_examples_that_are_none(party: Make) -> None:
    one = party()
    path = one.folder / "wine.safetensors"
    (one.folder / "other.safetensors").write_bytes((one.pack.folder / "wine.safetensors").read_bytes())
    one.change(tasks={"wine": {"model": "mlp-small", "examples": "other.safetensors"}})
    with pytest.raises(DataError, match="expected a file of 'fedstill examples 1'"):
        owned(one.site)
    one.change(tasks={"wine": {"model": "mlp-small", "examples": "wine.safetensors"}})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        owned(one.site)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        owned(one.site)


def test_a_task_that_the_pack_does_not_have(party: Make) -> None:
    one = party()
    one.change(tasks={"vine": {"model": "mlp-small", "examples": "wine.safetensors"}})

    with pytest.raises(ConfigError, match=r"task 'vine': expected a task of .*did you mean 'wine'"):
        owned(one.site)
