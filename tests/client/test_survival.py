"""A client that dies, loses its disk or is there twice: it goes on with its own student, or says why it does not."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flwr.app import RecordDict
from flwr.common.serde import message_to_proto

from fedstill.common import records
from fedstill.common.errors import Reason
from fedstill.common.messages import ROUND, Refusal

if TYPE_CHECKING:
    from tests.client.conftest import Party

Make = Callable[..., "Party"]

KILLED = """
import os, signal, sys
from flwr.app import Context, RecordDict
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message
from flwr.supercore.task_identity import TaskIdentity
from fedstill.client import app as apps
from fedstill.client.ledger import Ledger
from fedstill.client.store import Store
from fedstill.client.work import Worker
from fedstill.common import files
from fedstill.client.holdings import owned
from fedstill.client.site import read_site
from fedstill.common.registry import ALGORITHMS, MODELS
import pathlib

# Before the forks: imports, and those that the first optimiser brings about.
import torch
torch.optim.Adam([torch.zeros(1, requires_grad=True)])
ALGORITHMS.get("fedmd"), MODELS.get("mlp")
owned(read_site(pathlib.Path(sys.argv[1]) / "0" / "client.toml"))

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, when=lambda *_: True):
    original = getattr(owner, name)
    setattr(owner, name, lambda *args, **named: die() if when(*args) else original(*args, **named))

def after(owner, name, when=lambda *_: True):
    original = getattr(owner, name)
    def wrapped(*args, **named):
        result = original(*args, **named)
        return die() if when(*args) else result
    setattr(owner, name, wrapped)

def torn():
    # Half of the student is on the disk, under its temporary name.
    write = files.open if hasattr(files, "open") else open
    def half(path, mode):
        stream = write(path, mode)
        class Stream:
            def __enter__(self): return self
            def __exit__(self, *_): return stream.close()
            def write(self, content):
                stream.write(content[: len(content) // 2])
                stream.flush()
                die()
        return Stream()
    files.open = half

student = lambda _, to: "student-" in str(to)
POINTS = {
    "before the ledger": lambda: before(Ledger, "begin"),
    "before the work": lambda: before(Worker, "round"),
    "in the middle of the file": torn,
    "before the file has its name": lambda: before(os, "replace", student),
    "after the file has its name": lambda: after(os, "replace", student),
    "before the old ones are dropped": lambda: after(files, "flush_folder"),
    "after the save": lambda: after(Store, "save"),
    "before the answer is noted": lambda: before(Ledger, "answered"),
    "after the answer is noted": lambda: after(Ledger, "answered"),
}
folder, message = sys.argv[1:]
content = open(message, "rb").read()
for number, (point, patch) in enumerate(POINTS.items()):
    child = os.fork()
    if not child:
        patch()
        node = {"site": f"{folder}/{number}/client.toml"}
        apps.app(message_from_proto(Message.FromString(content)), Context(1, 2, node, RecordDict(), {}))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (point, status)
    print(point)
"""
"""Lets a client answer in forked processes, each of which kills itself at another point."""


@pytest.mark.slow
def test_a_killed_client_goes_on_with_its_own_student(party: Make, tmp_path: Path) -> None:
    whole = party()
    whole.answer(whole.order(1))
    copies = tmp_path / "killed"
    for number in range(9):
        subprocess.run(["cp", "-r", whole.folder, f"{tmp_path}/out/sites/{number}"], check=True)
    (tmp_path / "out" / "sites").rename(copies)
    whole.folder = copies / whole.folder.name
    for number in range(9):
        toml = copies / str(number) / "client.toml"
        toml.write_text(toml.read_text().replace("../../public", str(tmp_path / "out" / "public")))
    whole.change(public=str(tmp_path / "out" / "public"))
    order = whole.order(2)
    message = whole.message(ROUND, records.write_order(order))
    (tmp_path / "message").write_bytes(message_to_proto(message).SerializeToString())

    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(copies), str(tmp_path / "message")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    points = done.stdout.splitlines()
    expected = _bytes(whole.send(order))

    assert len(points) == 9
    for number, point in enumerate(points):
        one = replace(whole, folder=copies / str(number))
        versions = {int(name.removeprefix("student-")) for name in one.students()}
        assert 1 in versions, point
        again = replace(order, attempt=2)
        assert one.answer(again).version == 1, point
        # The very answer that the server would have had.
        assert _bytes(one.send(order)) == expected, point
        assert one.answer(one.order(3)).version == 2, point
        # It counted once.
        assert len((one.store / "ledger" / "run.jsonl").read_text().splitlines()) == 6, point
        rest = [path.name for path in one.store.rglob(".*.tmp")]
        assert len(rest) <= 1, (point, rest)


def _bytes(content: RecordDict) -> bytes:
    from flwr.common.serde import recorddict_to_proto

    return bytes(recorddict_to_proto(content).SerializeToString(deterministic=True))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that takes no file larger than that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_refusal_and_spoils_nothing(party: Make, caplog: pytest.LogCaptureFixture) -> None:
    one = party()
    one.answer(one.order(1))
    one.answer(one.order(2))
    kept = {path: path.read_bytes() for path in one.store.rglob("student-*")}
    order = one.order(3)

    with largest_file(2000):
        told = one.refusal(order)

    assert told == Refusal(Reason.STORAGE, "the site's store cannot be used: its own log says why")
    assert re.search(r"student-000003-\w+\.safetensors: cannot be written: File too large", caplog.text)
    assert {path: path.read_bytes() for path in one.store.rglob("student-*")} == kept
    assert list(one.store.rglob(".*.tmp")) == []
    # With room again the round is what it would have been, and the same order.
    assert one.answer(order).version == 2


def test_a_disk_without_room_for_a_line_stops_the_work_before_it_begins(
    party: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = party()
    one.answer(one.order(1))
    worked: list[str] = []
    monkeypatch.setattr("fedstill.client.work.Worker.round", lambda *_: worked.append("yes"))
    size = (one.store / "ledger" / "run.jsonl").stat().st_size

    with largest_file(size + 10):
        told = one.refusal(one.order(2))

    assert (told.reason, worked) == (Reason.STORAGE, [])
    assert (one.store / "ledger" / "run.jsonl").stat().st_size == size
    monkeypatch.undo()
    one.answer(one.order(2))


def test_a_damaged_student_is_passed_over_and_the_server_is_told(party: Make) -> None:
    one = party()
    for number in (1, 2, 3):
        one.answer(one.order(number))
    (newest,) = (one.store / "runs" / "run").glob("student-000003-*")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))

    answer = one.answer(one.order(4))

    assert answer.version == 2
    assert one.answer(one.order(5)).version == 4


def test_a_client_that_has_lost_everything_begins_anew(party: Make) -> None:
    one = party()
    one.answer(one.order(1))
    for path in (one.store / "runs" / "run").iterdir():
        path.unlink()

    assert one.answer(one.order(2)).version == 0


def test_a_second_process_is_refused(
    party: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = party()
    monkeypatch.setattr("fedstill.common.lock.PATIENCE", 0.1)
    program = (
        "import sys\nfrom pathlib import Path\nfrom fedstill.common.lock import only_process\n"
        "with only_process(Path(sys.argv[1])):\n    print('here', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(one.store)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        told = one.refusal(one.order(1))
        process.stdin.close()
        process.wait(timeout=20)

    assert told == Refusal(Reason.BUSY, "another process works in the site's store: its own log says which")
    cure = "give each node a store of its own, and a key to one node"
    assert f"store {one.store}: process {process.pid} works in it ({cure})" in caplog.text
    assert one.students() == []
    one.answer(one.order(1))


def test_each_run_has_a_folder(party: Make) -> None:
    one = party()

    one.answer(one.order(1))
    one.answer(one.order(1, run="another"))

    assert one.students() == one.students("another") == ["student-000001"]
    assert sorted(os.listdir(one.store)) == ["ledger", "lock", "runs"]


def test_work_that_takes_too_long_leaves_the_student_as_it_was(party: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = party()
    one.answer(one.order(1))
    one.change(resources={"seconds": 0.5})

    def endless(*_: object, **__: object) -> None:
        while True:
            pass

    with monkeypatch.context() as patch:
        patch.setattr("fedstill.client.work.Worker.round", endless)
        told = one.refusal(one.order(2))

    assert told.reason is Reason.RESOURCES
    assert one.students() == ["student-000001"]
    one.change(resources={"seconds": 300})
    assert one.answer(one.order(2)).version == 1


NEEDED = """
import sys
from flwr.app import Context, RecordDict
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message
from flwr.supercore.task_identity import TaskIdentity
from fedstill.client.app import app
from fedstill.common.introduction import read_refusal
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
question = message_from_proto(Message.FromString(open(sys.argv[2], "rb").read()))
reply = app(question, Context(1, 2, {"site": sys.argv[1]}, RecordDict(), {}))
assert read_refusal(reply.content) is None, reply.content
parts = {name.split(".")[0] for name in sys.modules} | {".".join(name.split(".")[:2]) for name in sys.modules}
print(*sorted(parts))
"""


@pytest.mark.slow
def test_a_site_needs_nothing_of_a_simulation(party: Make, tmp_path: Path) -> None:
    one = party()
    message = one.message(ROUND, records.write_order(one.order(1)))
    (tmp_path / "message").write_bytes(message_to_proto(message).SerializeToString())

    done = subprocess.run(
        [sys.executable, "-c", NEEDED, str(one.path), str(tmp_path / "message")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"fedstill.client", "fedstill.common", "torch"} <= loaded
    heavy = {"sklearn", "datasets", "flwr_datasets", "matplotlib", "tensorboard", "ray", "pandas", "PIL", "tokenizers"}
    assert loaded & {"fedstill.simulations", "fedstill.server", *heavy} == set()
