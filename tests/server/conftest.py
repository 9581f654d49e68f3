from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.server.services import Authority, Party, Peer, served
from torch import Tensor

from fedstill.common.errors import Reason
from fedstill.common.files import write_atomically
from fedstill.common.messages import Metrics
from fedstill.common.scenario import to_toml
from fedstill.common.seeding import numpy_rng
from fedstill.server.admission import Rejection
from fedstill.server.folder import RunFolder
from fedstill.server.record import Attempt, StepRecord, Traffic, to_line
from fedstill.server.serving.batching import Limits
from fedstill.server.serving.model import Served
from fedstill.server.serving.service import Service, TlsKeys

MODELS = (("mlp-small", 2410), ("mlp", 17226), ("cnn-small", 9098), ("cnn", 61706))

EIGHT = tuple(f"client-{number}" for number in range(8))

RunMaker = Callable[..., RunFolder]


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Writes the folder of an invented run: accuracies that rise, traffic, a few failures."""

    def make(name: str = "digits-fedmd", **options: Any) -> RunFolder:
        return write_run(tmp_path / name, **options)

    return make


def write_run(
    path: Path,
    *,
    clients: Sequence[str] = EIGHT,
    rounds: int = 10,
    planned: int = 0,
    tasks: Mapping[str, int] = {"digits": 10},
    algorithm: str = "fedmd",
    alone: bool = True,
    finish: bool = True,
    failures: bool = True,
    measured: bool = True,
    own_classes: bool = False,
) -> RunFolder:
    labels = {task: [f"{number}" for number in range(count)] for task, count in tasks.items()}
    owned = {
        (client, task): _owned(place, names) if own_classes else names
        for place, client in enumerate(clients)
        for task, names in labels.items()
    }
    config = {
        "fedstill": "0.1.0",
        "data-dir": "",
        "labels": labels,
        "roster": {
            client: {
                task: {
                    "model": MODELS[place % 4][0],
                    "parameters": MODELS[place % 4][1],
                    "examples": 60 + 17 * place % 90,
                    "classes": owned[client, task],
                    "software": "0.1.0",
                }
                for task in tasks
            }
            for place, client in enumerate(clients)
        },
        "scenario": {
            "name": path.name.split("-")[0],
            "description": "",
            "seed": 1,
            "algorithm": {"name": algorithm, "temperature": 1.0},
            "rounds": {"count": planned or rounds},
            "clients": {"count": len(clients), "cohort": 1.0},
            "tasks": {task: {"kind": task, "models": [name for name, _ in MODELS]} for task in tasks},
        },
    }
    write_atomically(path / "config.toml", to_toml(config).encode())
    steps: list[tuple[str, int]] = [("alone", 0)] if alone else []
    steps += [("round", number) for number in range(1, rounds + 1)]
    steps += [("finish", rounds + 1)] if finish else []
    lines = [
        to_line(
            _step(
                kind=kind,
                step=step,
                clients=clients,
                owned=owned,
                algorithm=algorithm,
                failures=failures,
                measured=measured,
            ).table()
        )
        for kind, step in steps
    ]
    write_atomically(path / "rounds.jsonl", "".join(line + "\n" for line in lines).encode())
    return RunFolder(path)


def _owned(place: int, names: list[str]) -> list[str]:
    return [name for number, name in enumerate(names) if (number + place) % 3]


def _step(
    *,
    kind: str,
    step: int,
    clients: Sequence[str],
    owned: Mapping[tuple[str, str], list[str]],
    algorithm: str,
    failures: bool,
    measured: bool,
) -> StepRecord:
    fails = failures and kind == "round" and len(clients) > 2
    rejected = []
    if fails and step % 3 == 2:
        rejected.append(Rejection(clients[1], Reason.NOT_FINITE, "probabilities hold NaN: expected finite numbers"))
    if fails and step % 4 == 3:
        rejected.append(Rejection(clients[2], Reason.NO_ANSWER, "no answer within 600 s"))
    out = {rejection.client for rejection in rejected}
    accepted = [client for client in clients if client not in out]
    abandoned = []
    if fails and step == 5:
        late = [Rejection(client, Reason.NO_ANSWER, "no answer within 600 s") for client in clients[2:]]
        abandoned.append(Attempt(1, clients, clients[:2], late))
    exchanges = algorithm not in ("local", "central") and kind != "alone"
    up = dict.fromkeys(accepted, 20600 if exchanges and kind == "round" else 180)
    down = dict.fromkeys(clients, 20400 if exchanges and step > 1 else 420)
    tasks = {task for _, task in owned}
    server: dict[str, Metrics] = {}
    if exchanges and kind == "round":
        server = {
            task: {"accuracy": 0.93 - 0.6 * 0.7**step, "consensus.accuracy": 0.95 - 0.5 * 0.7**step} for task in tasks
        }
    if algorithm == "central" and kind == "round":
        server = {task: {"accuracy": 0.96 - 0.5 * 0.6**step} for task in tasks}
    return StepRecord(
        kind=kind,
        step=step,
        attempt=Attempt(1 + len(abandoned), clients, accepted, rejected),
        abandoned=abandoned,
        traffic=Traffic(up, down),
        seconds=2.0 + 0.25 * (step % 3) + (3 if abandoned else 0),
        server=server,
        clients={
            task: {
                client: _measures(kind, step, place=place, classes=owned[client, task], algorithm=algorithm)
                for place, client in enumerate(clients)
                if client in accepted and measured and algorithm != "central"
            }
            for task in tasks
        },
    )


def _measures(kind: str, step: int, *, place: int, classes: Sequence[str], algorithm: str) -> Metrics:
    rng = numpy_rng(7, place, step)
    floor = numpy_rng(3, place).uniform(0.25, 0.7)

    def of(stage: str, level: float, known: float) -> Metrics:
        skew = numpy_rng(11, place).uniform(0, 1, len(classes))
        rates = [min(1.0, max(0.0, level + (1 - known) * (2 * value - 1))) for value in skew]
        rates[-1] = float("nan") if place == 3 else rates[-1]
        return {
            f"{stage}.own-accuracy": min(1.0, level + 0.1),
            f"{stage}.accuracy": level,
            f"{stage}.class-accuracy": [float(rate) for rate in rates],
        }

    if kind == "alone":
        return of("alone", floor, 0.4)
    grown = floor if algorithm == "local" else floor + (0.91 - floor) * (1 - 0.62**step)
    level = float(grown + rng.normal(0, 0.012))
    if kind == "finish":
        return of("final", level, 0.9)
    measures = of("trained", level - 0.05, 0.8)
    return measures | of("distilled", level - 0.015, 0.85) if step > 1 and algorithm != "local" else measures


# Services ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """A client and a server generated from the public protocol, which know nothing of fedstill's own."""
    here, folder = Path(__file__).parent, tmp_path_factory.mktemp("peer")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{here}", f"--python_out={folder}"]
    subprocess.run([*command, f"--grpc_python_out={folder}", "open_inference_peer.proto"], cwd=here, check=True)
    sys.path.insert(0, str(folder))
    try:
        return Peer(
            importlib.import_module("open_inference_peer_pb2"), importlib.import_module("open_inference_peer_pb2_grpc")
        )
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def parties(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Party]:
    """A server and a client that know each other, and a stranger with an authority of its own."""
    folder = tmp_path_factory.mktemp("tls")
    known, strange = Authority(folder, "known"), Authority(folder, "strange")
    return {"server": known.issue("server"), "client": known.issue("client"), "stranger": strange.issue("stranger")}


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    """Starts a service; all of them are stopped at the end."""
    begun: list[Service] = []

    def start(*models: Served, limits: Limits | None = None, tls: TlsKeys | None = None) -> Service:
        service = Service(models or (served(),), limits=limits, tls=tls)
        service.start()
        begun.append(service)
        return service

    yield start
    for service in begun:
        service.stop(grace=1.0)


@pytest.fixture
def ask(peer: Any) -> Iterator[Callable[..., Any]]:
    """A stub of the peer for a service; its channels are closed at the end."""
    channels: list[grpc.Channel] = []

    def connect(service: Service, credentials: grpc.ChannelCredentials | None = None) -> Any:
        address = f"127.0.0.1:{service.port}"
        channel = grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)
        channels.append(channel)
        return peer.grpc.GRPCInferenceServiceStub(channel)

    yield connect
    for channel in channels:
        channel.close()


@pytest.fixture
def question(peer: Any) -> Callable[..., Any]:
    """A request with raw contents."""

    def make(inputs: Tensor, *, model: str = "shapes", outputs: tuple[str, ...] = (), **fields: Any) -> Any:
        request = peer.messages.ModelInferRequest(model_name=model, **fields)
        datatype = "FP32" if inputs.is_floating_point() else "INT64"
        request.inputs.add(name="inputs", datatype=datatype, shape=inputs.shape)
        request.raw_input_contents.append(inputs.numpy().tobytes())
        for name in outputs:
            request.outputs.add(name=name)
        return request

    return make
