from __future__ import annotations

import builtins
import os
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from fedstill.common.errors import UnsupportedError
from fedstill.server.folder import RunFolder
from fedstill.server.launch import report
from fedstill.server.report import write_report
from fedstill.server.report.series import class_rates, cost, participation, progress
from fedstill.server.summary import summary

RunMaker = Callable[..., RunFolder]

VOID = {"meta", "link", "img", "br", "hr", "input", "use", "path", "rect"}


class Page(HTMLParser):
    """What a test asks of a page: its tags, its texts, what it links to, whether it is well nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headers: list[str] = []  # of rows
        self.of_row = False
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "th":
            self.of_row = ("scope", "row") in attrs
            self.headers += [""] if self.of_row else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.of_row and self.open and self.open[-1] == "th":
            self.headers[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: RunFolder) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "no-alone": {"alone": False},
    "under-way": {"finish": False, "rounds": 4, "planned": 10},
    "first-round": {"finish": False, "rounds": 1, "planned": 10},
    "only-alone": {"finish": False, "rounds": 0, "planned": 10},
    "nothing": {"finish": False, "rounds": 0, "planned": 10, "alone": False},
    "local": {"algorithm": "local"},
    "fedavg": {"algorithm": "fedavg"},
    "central": {"algorithm": "central", "alone": False},
    "foreign": {"algorithm": "a-method-of-somebody-else"},
    "own-classes": {"own_classes": True},
    "unmeasured": {"measured": False, "rounds": 2},
    "two-tasks": {"tasks": {"digits": 10, "articles": 4}, "rounds": 3},
    "one-client": {"clients": ["only"], "rounds": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_page_needs_nothing_from_outside_and_names_every_client(make_run: RunMaker, case: str) -> None:
    folder = make_run(case, **CASES[case])
    text = write_report(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    for _, attributes in page.tags:
        for name in ("href", "xlink:href", "src", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert not {"link", "script", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    names = list(folder.config()["roster"])
    tasks = len(folder.config()["labels"])
    assert all(page.headers.count(name) >= tasks for name in names)
    assert "nan" not in page.text.lower().replace("not-finite", "").replace("hold nan", "")


def test_ids_are_unique_and_every_reference_is_met(make_run: RunMaker) -> None:
    page = page_of(make_run(tasks={"digits": 10, "articles": 4}, own_classes=True))
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    wanted = {(attributes.get("href") or "")[1:] for attributes in page.all("use")}
    wanted |= {name for _, a in page.tags for name in re.findall(r"url\(#([^)]*)\)", " ".join(map(str, a.values())))}
    wanted |= {attributes["aria-labelledby"] or "" for _, attributes in page.tags if "aria-labelledby" in attributes}
    assert wanted
    assert wanted <= set(ids)


def test_plots_have_labels_and_tables_have_headers(make_run: RunMaker) -> None:
    page = page_of(make_run())
    plots = page.all("svg")
    assert [attributes["role"] for attributes in plots] == ["img"] * 6
    assert all(len(attributes["aria-label"] or "") > 20 for attributes in plots)
    assert all(attributes.get("scope") in ("col", "row") for attributes in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_names_are_escaped(make_run: RunMaker) -> None:
    bad = ["<script>alert(1)</script>", "a\"b'c & d", "$x_1$ é", "plain"]
    folder = make_run(clients=bad, tasks={"<b>task</b>": 3})
    page = page_of(folder)
    assert page.all("script") == []
    assert page.all("b") == [attributes for attributes in page.all("b") if attributes["class"] in ("from", "to")]
    assert set(bad) <= set(page.headers)
    titles = write_report(folder).read_text(encoding="utf-8")
    assert "<title>&lt;script&gt;alert(1)&lt;/script&gt;</title>" in titles


def test_same_numbers_give_the_same_page(make_run: RunMaker) -> None:
    folder = make_run()
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_settings_of_matplotlib_are_left_alone(make_run: RunMaker) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_report(make_run(rounds=1))
    assert dict(mpl.rcParams) == before


def test_page_is_small_even_for_a_hundred_clients(make_run: RunMaker) -> None:
    assert os.path.getsize(write_report(make_run("eight"))) < 300_000
    hundred = write_report(make_run("hundred", clients=[f"device-{n:03}" for n in range(100)], rounds=20))
    assert os.path.getsize(hundred) < 1_500_000
    assert len(Page(hundred.read_text(encoding="utf-8")).text) < 60_000


def test_missing_package_is_named(make_run: RunMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "jinja2":
            raise ImportError("no module", name="jinja2")
        return real(name, *rest, **options)

    folder = make_run(rounds=1)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnsupportedError, match=r"report without jinja2: .*fedstill\[simulations\]"):
        write_report(folder)


def test_a_run_ends_well_without_a_report(
    make_run: RunMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_run(rounds=1)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report(folder) is None
    assert "report without matplotlib" in caplog.text
    assert not folder.report.exists()


def test_what_is_distilled_in_a_round_belongs_to_the_round_before(make_run: RunMaker) -> None:
    folder = make_run(rounds=3, failures=False, clients=["a", "b"])
    records = folder.records()
    found = summary(folder)
    curves = progress(records, found.tasks[0])
    measures = [record["tasks"]["digits"]["clients"]["a"] for record in records]
    assert curves.clients["a"] == {
        1: measures[2]["distilled.accuracy"],
        2: measures[3]["distilled.accuracy"],
        3: measures[4]["final.accuracy"],
    }
    assert list(curves.trained) == [1, 2, 3]
    assert curves.teacher[3] == records[3]["tasks"]["digits"]["server"]["accuracy"]


def test_bytes_reach_up_to_the_moment_of_the_measure(make_run: RunMaker) -> None:
    folder = make_run(rounds=3, failures=False, clients=["a", "b"])
    found = summary(folder)
    spent = cost(folder.records(), progress(folder.records(), found.tasks[0]), found)
    up, first, down = 2 * 20_600, 2 * 420, 2 * 20_400
    assert spent.bytes == [up + first + down, 2 * up + first + 2 * down, 3 * up + first + 3 * down]
    fedavg = 2 * 4 * (2410 + 17226)
    assert spent.fedavg == (fedavg, 3 * fedavg)


def test_what_is_told_at_the_start_has_a_place_and_a_price(make_run: RunMaker) -> None:
    folder = make_run(rounds=3, failures=False, clients=["a", "b"])
    records = folder.records()
    for measures in records[1]["tasks"]["digits"]["clients"].values():
        measures["distilled.accuracy"] = 0.1
    found = summary(folder)
    curves = progress(records, found.tasks[0])
    spent = cost(records, curves, found)
    assert list(curves.main) == [0, 1, 2, 3]
    assert spent.bytes[0] == records[1]["bytes"]["down"]
    assert spent.values[0] == pytest.approx(0.1)
    assert len(spent.bytes) == len(spent.values) == 4


def test_local_has_no_shared_knowledge(make_run: RunMaker) -> None:
    folder = make_run(algorithm="local")
    curves = progress(folder.records(), summary(folder).tasks[0])
    assert curves.together == {}
    assert list(curves.clients["client-0"]) == list(range(1, 11))


def test_classes_that_a_client_lacks(make_run: RunMaker) -> None:
    folder = make_run(own_classes=True)
    rates = class_rates(folder.records(), summary(folder).tasks[0])
    assert rates.known[0] == tuple(number % 3 != 0 for number in range(10))
    for known, row in zip(rates.known, rates.after, strict=True):
        assert all(value is None for there, value in zip(known, row, strict=True) if not there)
    measured = folder.records()[-1]["tasks"]["digits"]["clients"]["client-0"]["final.class-accuracy"]
    assert [value for value in rates.after[0] if value is not None] == measured


def test_participation(make_run: RunMaker) -> None:
    folder = make_run(rounds=5)
    who = participation(folder.config(), folder.records())
    # Client 1 is refused in rounds 2 and 5, client 2 in round 3; in round 5 the others came late at first only.
    assert who.rejected == {(1, 1), (1, 4), (2, 2)}
    assert who.abandoned == (0, 0, 0, 0, 1)
    assert len(who.accepted) == 5 * 8 - 3
    assert not who.smooth
    calm = make_run("calm", failures=False)
    assert participation(calm.config(), calm.records()).smooth
