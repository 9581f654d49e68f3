from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedstill.common.errors import ConfigError, UnsupportedError
from fedstill.simulations.engine import LocalGrid, load_app

Work = Callable[[Message, Context], Message]

CLIENTS = """
import os
import sys
import time

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("act")
def act(message, context):
    number = context.node_config["partition-id"]
    do = message.content["do"]
    calls = int(context.state["calls"]["n"]) + 1 if "calls" in context.state else 1
    context.state["calls"] = ConfigRecord({"n": calls})
    if do.get("die") == number:
        os._exit(9)
    if do.get("die-once") == number and not os.path.exists(do["mark"]):
        open(do["mark"], "w").close()
        os._exit(9)
    if do.get("leave") == number:
        sys.exit(3)
    if do.get("raise") == number:
        raise ValueError("no\\ndata")
    if do.get("huge-reply") == number:
        return Message(RecordDict({"x": ConfigRecord({"n": 2**70})}), reply_to=message)
    if do.get("huge-state") == number:
        context.state["x"] = ConfigRecord({"n": 2**70})
    if do.get("nothing") == number:
        return None
    time.sleep(float(do.get("sleep", 0)))
    answer = ConfigRecord({"number": number, "calls": calls, "pid": os.getpid(), "text": str(do.get("text", ""))})
    do["text"] = "used"
    return Message(RecordDict({"answer": answer, "do": do}), reply_to=message)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of clients that do as they are told."""
    folder = tmp_path_factory.mktemp("clients")
    (folder / "obedient_clients.py").write_text(CLIENTS)
    return folder


@pytest.fixture(scope="module")
def module(place: Path) -> Iterator[str]:
    """Their import path; worker processes find it through sys.path."""
    sys.path.insert(0, str(place))
    yield "obedient_clients:app"
    sys.path.remove(str(place))


@pytest.fixture(params=[1, 2], ids=["here", "two processes"])
def grid(request: pytest.FixtureRequest, module: str) -> Iterator[LocalGrid]:
    made = LocalGrid(module, clients=3, workers=request.param)
    yield made
    made.close()


@pytest.fixture
def pool(module: str) -> Iterator[LocalGrid]:
    made = LocalGrid(module, clients=3, workers=2)
    yield made
    made.close()


def send(grid: LocalGrid, nodes: list[int] | None = None, **do: str | int | float) -> dict[str, int]:
    """Tell clients what to do; gives the client's number by message id."""
    content = RecordDict({"do": ConfigRecord({key.replace("_", "-"): value for key, value in do.items()})})
    ids = list(grid.get_node_ids())
    messages = [Message(content, ids[number], "query.act") for number in nodes or range(len(ids))]
    identities = grid.push_messages(messages)
    return {str(identity): number for identity, number in zip(identities, nodes or range(len(ids)), strict=True)}


def receive(grid: LocalGrid, waiting: dict[str, int], *, within: float = 30.0) -> dict[int, Message]:
    """Replies by client."""
    left, found, end = dict(waiting), {}, time.monotonic() + within
    while left and time.monotonic() < end:
        for reply in grid.pull_messages(list(left)):
            found[left.pop(reply.metadata.reply_to_message_id)] = reply
    return found


def act(grid: LocalGrid, nodes: list[int] | None = None, **do: str | int | float) -> dict[int, Message]:
    return receive(grid, send(grid, nodes, **do))


def answer(reply: Message) -> dict[str, object]:
    return dict(reply.content.config_records["answer"])


def processes(grid: LocalGrid) -> set[int]:
    """Both worker processes; one that starts late leaves its work to the other, so that it may take some messages."""
    found: set[int] = set()
    end = time.monotonic() + 30
    while len(found) < 2 and time.monotonic() < end:
        found |= {int(str(answer(reply)["pid"])) for reply in act(grid, sleep=0.1).values()}
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def await_end(pids: set[int], *, within: float = 10.0) -> set[int]:
    """Those processes that are still there after a while."""
    end = time.monotonic() + within
    while time.monotonic() < end and any(alive(pid) for pid in pids):
        time.sleep(0.05)
    return {pid for pid in pids if alive(pid)}


def test_everybody_answers(grid: LocalGrid) -> None:
    replies = act(grid, text="hello")

    assert {number: answer(reply)["number"] for number, reply in replies.items()} == {0: 0, 1: 1, 2: 2}
    assert {answer(reply)["text"] for reply in replies.values()} == {"hello"}
    ids = list(grid.get_node_ids())
    assert {number: reply.metadata.src_node_id for number, reply in replies.items()} == dict(enumerate(ids))


def test_no_two_clients_share_an_object(grid: LocalGrid) -> None:
    content = RecordDict({"do": ConfigRecord({"text": "fresh"})})
    messages = [Message(content, node, "query.act") for node in grid.get_node_ids()]

    replies = list(grid.send_and_receive(messages))

    # Each client writes "used" over the text it was sent.
    assert [answer(reply)["text"] for reply in replies] == ["fresh"] * 3
    assert content.config_records["do"]["text"] == "fresh"
    assert all(reply.content.config_records["do"]["text"] == "used" for reply in replies)


def test_contexts_last(grid: LocalGrid) -> None:
    act(grid)
    act(grid, [1])

    replies = act(grid)

    assert {number: answer(reply)["calls"] for number, reply in replies.items()} == {0: 2, 1: 3, 2: 2}


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("raise", "ValueError: no\ndata"),
        ("leave", "SystemExit: 3"),
        ("nothing", "TypeError: the ClientApp returned NoneType, expected a Message"),
        ("huge-reply", "ValueError"),
    ],
)
def test_what_a_client_does_wrong_is_its_own_error(grid: LocalGrid, do: str, reason: str) -> None:
    replies = act(grid, None, **{do: 1})

    assert replies.keys() == {0, 1, 2}
    assert replies[1].has_error()
    assert replies[1].error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert str(replies[1].error.reason).startswith(reason)
    assert not replies[0].has_error()
    assert not replies[2].has_error()
    assert not act(grid)[1].has_error()


def test_a_context_that_cannot_be_serialised_stays_as_it_was(pool: LocalGrid) -> None:
    assert act(pool, huge_state=1)[1].has_error()
    assert answer(act(pool)[1])["calls"] == 1


def test_an_unknown_action_is_an_error_reply(grid: LocalGrid) -> None:
    node = next(iter(grid.get_node_ids()))

    (reply,) = grid.send_and_receive([Message(RecordDict(), node, "train.unknown")])

    assert reply.has_error()


def test_a_newer_message_takes_the_place_of_one_that_waits(grid: LocalGrid) -> None:
    here = answer(act(grid)[1])["pid"] == os.getpid()
    busy = {} if here else send(grid, [0, 2], sleep=0.3)
    old = send(grid, [1], text="old")
    new = send(grid, [1], text="new")

    replies = receive(grid, {**old, **new, **busy}, within=1.0)

    assert answer(replies[1])["text"] == "new"
    assert answer(replies[1])["calls"] == 2  # the old one never reached the client
    assert answer(act(grid, [1])[1])["calls"] == 3


def test_a_late_reply_can_still_be_had(pool: LocalGrid) -> None:
    processes(pool)
    first, second = send(pool, [0]), send(pool, [1], sleep=0.5)
    assert receive(pool, second).keys() == {1}  # by now the late one has come, and nobody looked for it
    assert receive(pool, send(pool, [2])).keys() == {2}

    assert receive(pool, first).keys() == {0}


def test_a_late_reply_goes_when_its_client_is_asked_again(pool: LocalGrid) -> None:
    processes(pool)
    first, second = send(pool, [0]), send(pool, [1], sleep=0.5)
    assert receive(pool, second).keys() == {1}

    again = send(pool, [0])

    assert receive(pool, again).keys() == {0}
    assert receive(pool, first, within=0.3) == {}


def test_send_and_receive_gives_up_after_its_timeout(pool: LocalGrid) -> None:
    ids = list(pool.get_node_ids())
    processes(pool)
    content = [RecordDict({"do": ConfigRecord({"sleep": pause})}) for pause in (0.0, 1.5)]
    messages = [Message(one, node, "query.act") for one, node in zip(content, ids, strict=False)]

    replies = list(pool.send_and_receive(messages, timeout=0.7))

    assert [reply.metadata.src_node_id for reply in replies] == ids[:1]


def test_two_processes_work(pool: LocalGrid) -> None:
    pids = processes(pool)

    assert len(pids) == 2
    assert os.getpid() not in pids


def test_a_process_that_dies_takes_its_client_only(pool: LocalGrid) -> None:
    replies = act(pool, die=1, sleep=0.1)

    assert replies[1].has_error()
    assert replies[1].error.code == ErrorCode.CLIENT_APP_CRASHED
    assert replies[1].error.reason == "the client's process died"
    assert [answer(replies[number])["calls"] for number in (0, 2)] == [1, 1]
    assert {number: answer(reply)["calls"] for number, reply in act(pool).items()} == {0: 2, 1: 1, 2: 2}


def test_a_process_that_dies_once_is_forgiven(pool: LocalGrid, tmp_path: Path) -> None:
    replies = act(pool, die_once=1, mark=str(tmp_path / "died"), sleep=0.1)

    assert [replies[number].has_error() for number in range(3)] == [False] * 3


def test_a_process_that_dies_with_nothing_to_do_is_replaced(pool: LocalGrid) -> None:
    os.kill(processes(pool).pop(), signal.SIGKILL)
    time.sleep(0.5)  # the pool notices

    replies = act(pool)

    assert [replies[number].has_error() for number in range(3)] == [False] * 3


def test_no_process_is_left_after_close(module: str) -> None:
    grid = LocalGrid(module, clients=3, workers=2)
    pids = processes(grid)
    assert all(alive(pid) for pid in pids)

    grid.close()

    assert await_end(pids) == set()


PARENT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from flwr.app import ConfigRecord, Message, RecordDict
from fedstill.simulations.engine import LocalGrid

if __name__ == "__main__":
    grid = LocalGrid("obedient_clients:app", clients=2, workers=2)
    pids = set()
    while len(pids) < 2:  # a process that starts late leaves its work to the other
        pause = RecordDict({"do": ConfigRecord({"sleep": 0.1})})
        ask = [Message(pause, node, "query.act") for node in grid.get_node_ids()]
        pids |= {reply.content["answer"]["pid"] for reply in grid.send_and_receive(ask)}
    if sys.argv[2] == "busy":
        rest = RecordDict({"do": ConfigRecord({"sleep": 60})})
        grid.push_messages([Message(rest, node, "query.act") for node in grid.get_node_ids()])
    print(*pids, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_no_process_outlives_a_killed_parent(place: Path, tmp_path: Path, state: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(place), state]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = {int(word) for word in parent.stdout.readline().split()}
        assert len(pids) == 2

        parent.kill()
        parent.wait()

    assert await_end(pids) == set()


def test_worker_processes_need_an_import_path() -> None:
    with pytest.raises(UnsupportedError, match=r'name it "package.module:attribute"'):
        LocalGrid(ClientApp(), clients=2, workers=2)
    with pytest.raises(ConfigError, match="workers=0"):
        LocalGrid(ClientApp(), clients=2, workers=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_app_that_is_not_there_is_told_at_once(workers: int) -> None:
    with pytest.raises(ConfigError, match="ClientApp 'no_such_module:app': cannot be imported"):
        LocalGrid("no_such_module:app", clients=2, workers=workers)


def test_apps_are_found_by_path() -> None:
    assert isinstance(load_app("fedstill.client.app:app"), ClientApp)
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_app("fedstill.client.app:nothing")
    with pytest.raises(ConfigError, match=r"'fedstill\.client\.app:client_app' is a function: expected a ClientApp"):
        load_app("fedstill.client.app:client_app")


def test_nodes_know_their_number_and_configuration() -> None:
    seen: list[tuple[dict[str, object], dict[str, object]]] = []
    app = ClientApp()

    @app.query("look")
    def look(message: Message, context: Context) -> Message:
        seen.append((dict(context.node_config), dict(context.run_config)))
        return Message(RecordDict(), reply_to=message)

    grid = LocalGrid(app, clients=2, run_config={"seed": 3}, node_config={"store": "here"})
    list(grid.send_and_receive([Message(RecordDict(), node, "query.look") for node in grid.get_node_ids()]))

    assert seen == [({"partition-id": number, "num-partitions": 2, "store": "here"}, {"seed": 3}) for number in (0, 1)]
    assert grid.run.run_id == 1
    made = grid.create_message(RecordDict(), "query.look", next(iter(grid.get_node_ids())), "group", ttl=5.0)
    assert (made.metadata.message_type, made.metadata.group_id, made.metadata.ttl) == ("query.look", "group", 5.0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_message_overtaken_by_a_later_one_to_the_same_node_fails_and_nobody_waits_for_it(workers: int) -> None:
    grid = LocalGrid("fedstill.client.app:app", clients=1, workers=workers)
    try:
        node = next(iter(grid.get_node_ids()))
        # The app has no such action: the later message fails too, but for its own reason.
        messages = [Message(RecordDict(), node, "query.nothing") for _ in range(3)]
        replies = list(grid.send_and_receive(messages))
    finally:
        grid.close()
    codes = [reply.error.code for reply in replies]
    assert sorted(codes) == sorted([ErrorCode.CLIENT_APP_RAISED_EXCEPTION] + 2 * [ErrorCode.MESSAGE_UNAVAILABLE])
