"""The shared teacher behind an endpoint: our own service, and one that somebody else wrote from the public protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from tests.server.services import Gated

from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import (
    ConfigError,
    FedstillError,
    KnowledgeError,
    MismatchError,
    RunError,
    UnsupportedError,
)
from fedstill.common.knowledge import SoftLabels
from fedstill.common.learning import Training
from fedstill.common.models import build_model
from fedstill.common.seeding import torch_rng
from fedstill.common.sides import Server
from fedstill.common.task import TaskSpec
from fedstill.server.serving.batching import Limits
from fedstill.server.serving.model import Served
from fedstill.server.serving.service import Service, TlsKeys
from fedstill.server.teacher.remote import Remote

SPEC = TaskSpec("things", "categorical", "tabular", ("a", "b", "c"), (4,))
PROXY = ProxySet(torch.randn(48, 4, generator=torch_rng(0, "inputs")))


def side(*, spec: TaskSpec = SPEC, samples: int = 48, model_seed: int = 9) -> Server:
    return Server(
        spec=spec,
        model_name="mlp-small",
        model=build_model("mlp-small", spec, seed=model_seed),
        proxy=PROXY,
        samples=np.arange(samples),
        training=Training(),
        seed=3,
        round=1,
    )


def served(spec: TaskSpec = SPEC, *, model_seed: int = 9, architecture: str = "mlp-small") -> Served:
    model = build_model(architecture, spec, seed=model_seed).eval()
    return Served(spec.name, "1", spec, architecture, model, Training(), PROXY.digest, "a-run")


def consensus(
    *, samples: int = 48, temperature: float = 2.0, label: int = 1, form: Any = "probabilities"
) -> SoftLabels:
    values = np.zeros((samples, 3), dtype=np.float32)
    values[:, label] = 1
    return SoftLabels("categorical", SPEC.classes, np.arange(samples), values, temperature, form)


def remote(service: Service | int, **options: Any) -> Remote:
    port = service if isinstance(service, int) else service.port
    return Remote(address=f"127.0.0.1:{port}", **{"retries": 0, "timeout": 10.0, **options})


def told(teacher: Remote, server: Server, labels: SoftLabels) -> SoftLabels:
    return teacher.learn({"things": server}, {"things": labels})["things"]


@pytest.fixture
def ours() -> Iterator[Service]:
    with Service([served()]) as service:
        yield service


# A stranger's endpoint -----------------------------------------------------------------------------------------------


@pytest.fixture
def stranger(peer: Any) -> Iterator[Callable[..., Any]]:
    """Starts an endpoint that somebody else wrote: no properties, typed contents, names and types of its own."""
    begun: list[grpc.Server] = []

    def start(**changes: Any) -> Any:
        here = Stranger(peer, **changes)
        server = grpc.server(ThreadPoolExecutor(4))
        peer.grpc.add_GRPCInferenceServiceServicer_to_server(here, server)
        here.port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        begun.append(server)
        return here

    yield start
    for server in begun:
        server.stop(None).wait(5)


class Stranger:
    """Scores of row x: 1, 2, 3 times its first number, for the classes "c", "x", "a" in that order.

    Attributes:
        seen: rows of each request.
    """

    def __init__(self, peer: Any, **changes: Any) -> None:
        self._peer = peer
        self.port = 0
        self.seen: list[int] = []
        self.answer: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda x: x[:, :1] * [[1.0, 2.0, 3.0]]
        self.inputs = [("x", "FP64", [-1, 4])]
        self.outputs = [("y", "FP64", [-1, 3])]
        self.properties: dict[str, str] = {}
        self.code: grpc.StatusCode | None = None
        for name, value in changes.items():
            setattr(self, name, value)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name != "things-model":
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        answer = self._peer.messages.ModelMetadataResponse(
            name=request.name, versions=["1"], properties=self.properties
        )
        for kind, tensors in ((answer.inputs, self.inputs), (answer.outputs, self.outputs)):
            for name, datatype, shape in tensors:
                kind.add(name=name, datatype=datatype, shape=shape)
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.code is not None:
            context.abort(self.code, "as told")
        rows = np.frombuffer(request.raw_input_contents[0], dtype="<f8").reshape(tuple(request.inputs[0].shape))
        self.seen.append(len(rows))
        values = self.answer(rows)
        answer = self._peer.messages.ModelInferResponse(model_name=request.model_name)
        output = answer.outputs.add(name="y", datatype="FP64", shape=values.shape)
        output.contents.fp64_contents.extend(values.ravel().tolist())
        return answer

    def __getattr__(self, name: str) -> Any:
        if name in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata"):
            return lambda request, context: context.abort(grpc.StatusCode.UNIMPLEMENTED, name)
        raise AttributeError(name)


FOREIGN = {"model": "{task}-model", "classes": ("c", "x", "a")}


# What it teaches -----------------------------------------------------------------------------------------------------


def test_it_says_what_the_model_would_say_here(ours: Service) -> None:
    here, teacher = side(), remote(ours, temperature=3.0)

    first = teacher.start({"things": here})["things"]
    second = told(teacher, here, consensus(samples=20))

    assert first.temperature == 3.0
    np.testing.assert_array_equal(first.values, side().soft_labels(temperature=3.0).values)
    assert (second.temperature, second.samples.tolist()) == (2.0, list(range(48)))
    np.testing.assert_array_equal(second.values, side().soft_labels(temperature=2.0).values)
    scores = told(teacher, here, consensus(form="logits"))
    np.testing.assert_array_equal(scores.values, side().soft_labels(form="logits").values)


def test_each_sample_is_asked_about_once(ours: Service) -> None:
    here, teacher = side(samples=16), remote(ours, batch=10)
    teacher.start({"things": here})
    assert ours.counts("things").rows == 16
    told(teacher, here, consensus(samples=16))
    assert ours.counts("things").rows == 16
    here.samples = np.arange(8, 30)
    labels = told(teacher, here, consensus(samples=3))

    counts = ours.counts("things")
    assert (counts.rows, counts.batches) == (30, 4)
    assert labels.samples.tolist() == [0, 1, 2, *range(8, 30)]
    np.testing.assert_allclose(
        labels.values, side().soft_labels(temperature=2.0).values[labels.samples], rtol=1e-5, atol=1e-7
    )


def test_what_it_remembers_is_kept_with_the_run(ours: Service) -> None:
    here, teacher = side(), remote(ours)
    teacher.start({"things": here})
    later = side()
    later.memory = {name: value.clone() for name, value in here.memory.items()}
    ours.stop()

    assert told(teacher, later, consensus()).values.shape == (48, 3)
    assert {name.partition(".")[0] for name in later.memory} == {"remote"}


def test_the_consensus_has_its_share(ours: Service) -> None:
    labels = told(remote(ours, consensus=0.25), side(), consensus())

    wanted = 0.75 * side().soft_labels(temperature=2.0).values
    wanted[:, 1] += 0.25
    np.testing.assert_allclose(labels.values, wanted, rtol=1e-6)
    assert labels.temperature == 2.0


def test_probabilities_are_brought_to_the_temperature(ours: Service) -> None:
    labels = told(remote(ours, scores="probabilities"), side(), consensus(temperature=2.0))

    np.testing.assert_allclose(labels.values, side().soft_labels(temperature=2.0).values, rtol=1e-4)
    plain = remote(ours, scores="probabilities").start({"things": side()})["things"]
    np.testing.assert_array_equal(plain.values, side().soft_labels().values)
    with pytest.raises(UnsupportedError, match=r"raw scores with teacher.scores='probabilities'"):
        told(remote(ours, scores="probabilities"), side(), consensus(form="logits"))


def test_an_endpoint_that_somebody_else_wrote(stranger: Any, caplog: pytest.LogCaptureFixture) -> None:
    here = stranger()
    teacher = remote(here.port, **FOREIGN, batch=20)

    labels = teacher.start({"things": side()})["things"]

    # Of the stranger's "c", "x", "a" the task knows "a" and "c"; "b" stays unsaid.
    assert labels.classes == ("a", "c")
    scores = PROXY.inputs[:, :1].double().numpy() * [[3.0, 1.0]]
    np.testing.assert_allclose(labels.values, torch.softmax(torch.from_numpy(scores), -1).numpy(), rtol=1e-5)
    assert here.seen == [20, 20, 8]
    assert "knows 2 of the 3 classes of task 'things'" in caplog.text


def test_what_a_stranger_does_not_say_has_to_be_said(stranger: Any) -> None:
    several = stranger(outputs=[("y", "FP64", [-1, 3]), ("z", "FP64", [-1, 3])])
    start = {"things": side()}
    with pytest.raises(
        ConfigError, match=r"classes of model 'things-model' .* are named nowhere \(set teacher.classes"
    ):
        remote(stranger().port, model="things-model").start(start)
    with pytest.raises(ConfigError, match=r"teacher.output='': expected a tensor of .* \(known: y, z\)"):
        remote(several.port, **FOREIGN).start(start)
    assert remote(several.port, **FOREIGN, output="y").start(start)["things"].classes == ("a", "c")
    with pytest.raises(ConfigError, match=r"teacher.input='xs': .*did you mean 'x'\?"):
        remote(stranger().port, **FOREIGN, input="xs").start({"things": side()})
    named = stranger(properties={"classes": json.dumps(["b", "c", "a"])})
    assert remote(named.port, model="things-model").start({"things": side()})["things"].classes == ("a", "b", "c")


# What goes wrong -----------------------------------------------------------------------------------------------------


def _one(value: float) -> Callable[[Any], Any]:
    def answer(rows: Any) -> Any:
        values = np.tile([[0.2, 0.3, 0.5]], (len(rows), 1))
        values[5, 1] = value
        return values

    return answer


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], type[FedstillError], str]] = {
    "another input shape": (
        {"inputs": [("x", "FP64", [-1, 5])]},
        {},
        MismatchError,
        r"reads shape \[-1, 5\]: expected \[-1, 4\], as the proxy samples of task 'things' are",
    ),
    "no axis of rows": ({"inputs": [("x", "FP64", [4])]}, {}, MismatchError, r"reads shape \[4\]"),
    "text for tables": ({"inputs": [("x", "BYTES", [-1, 4])]}, {}, MismatchError, "reads BYTES: expected floats"),
    "whole numbers for tables": ({"inputs": [("x", "INT64", [-1, 4])]}, {}, MismatchError, "reads INT64"),
    "more outputs than names": (
        {"outputs": [("y", "FP64", [-1, 4])]},
        {},
        MismatchError,
        r"gives shape \[-1, 4\]: expected \[-1, 3\]",
    ),
    "none of the classes": ({}, {"classes": ("p", "q", "r")}, MismatchError, "knows the classes .*expected those of"),
    "a class twice": ({}, {"classes": ("a", "a", "b")}, MismatchError, "knows the classes"),
    "another output kind": (
        {"properties": {"output": "multi-label"}},
        {},
        MismatchError,
        "has output 'multi-label': expected 'categorical'",
    ),
    "names that are no list": ({"properties": {"classes": "a,b"}}, {"classes": ()}, MismatchError, "a JSON list"),
    "another shape than announced": (
        {"answer": lambda rows: np.zeros((len(rows), 2))},
        {},
        KnowledgeError,
        r"of shape \(48, 2\): expected \(48, 3\)",
    ),
    "not finite": ({"answer": _one(np.nan)}, {}, KnowledgeError, "for proxy sample 5: expected finite numbers"),
    "infinite": ({"answer": _one(-np.inf)}, {}, KnowledgeError, "for proxy sample 5: expected finite numbers"),
    "no probabilities": (
        {"answer": _one(0.9)},
        {"scores": "probabilities"},
        KnowledgeError,
        r"set teacher.scores = 'logits' if these are raw outputs",
    ),
    "an unknown model": ({}, {"model": "thing"}, ConfigError, "expected a model that the server has"),
    "a refusal": ({"code": grpc.StatusCode.PERMISSION_DENIED}, {}, RunError, "PERMISSION_DENIED: as told"),
    "an answer that never comes": (
        {"code": grpc.StatusCode.DEADLINE_EXCEEDED},
        {"retries": 1},
        RunError,
        r"DEADLINE_EXCEEDED, 2 times: as told \(raise the time limit",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told(name: str, stranger: Any) -> None:
    changes, options, kind, words = WRONG[name]
    here = side()

    with pytest.raises(kind, match=words):
        remote(stranger(**changes).port, **{**FOREIGN, **options}).start({"things": here})

    assert "remote.values" not in here.memory


def test_token_ids_go_as_the_endpoint_reads_them(ours: Service) -> None:
    spec = TaskSpec("notes", "categorical", "text", ("good", "bad"), (6,), vocabulary=40, tokenizer="t0k")
    ids = ProxySet(torch.randint(0, 40, (16, 6), generator=torch_rng(1, "ids")))
    here = replace(side(), spec=spec, model_name="bag-small", model=build_model("bag-small", spec, seed=2), proxy=ids)
    here.samples = np.arange(16)
    with Service([served(spec, model_seed=2, architecture="bag-small")]) as service:
        labels = remote(service).start({"notes": here})["notes"]
        np.testing.assert_array_equal(labels.values, here.soft_labels().values)
        here.spec = replace(spec, tokenizer="other")
        with pytest.raises(MismatchError, match="has tokenizer 't0k': expected 'other'"):
            remote(service).look_ahead({"notes": here.spec})


def test_another_model_later_in_a_run_is_noticed(ours: Service) -> None:
    here = side(samples=16)
    remote(ours).start({"things": here})
    here.samples = np.arange(48)

    with (
        Service([served(model_seed=10)]) as other,
        pytest.raises(MismatchError, match="is not the one that taught in the rounds before"),
    ):
        told(remote(other), here, consensus())


def test_nobody_there() -> None:
    with Service([served()]) as gone:
        pass
    with pytest.raises(RunError, match=r"model 'things' at 127.0.0.1:\d+: UNAVAILABLE: .*start it, or mend the addr"):
        remote(gone).start({"things": side()})


def test_a_full_queue_is_tried_again() -> None:
    model = Gated(served().model)
    limits = Limits(requests=1)
    with Service([replace(served(), model=model)], limits=limits) as service, ThreadPoolExecutor(2) as pool:
        first = pool.submit(remote(service).start, {"things": side(samples=16)})
        assert model.asked.wait(10)
        with pytest.raises(RunError, match="RESOURCE_EXHAUSTED: 1 requests wait already"):
            remote(service).start({"things": side()})
        second = pool.submit(remote(service, retries=3).start, {"things": side()})
        model.gate.set()
        assert len(first.result(timeout=10)["things"].samples) == 16
        assert len(second.result(timeout=15)["things"].samples) == 48


def test_tls_files(parties: Mapping[str, Any]) -> None:
    own, client, strange = parties["server"], parties["client"], parties["stranger"]
    files = {"authority": str(own.authority), "certificate": str(client.certificate), "key": str(client.key)}
    with Service([served()], tls=TlsKeys(own.certificate, own.key, own.authority)) as service:
        assert remote(service, **files).start({"things": side()})["things"].values.shape == (48, 3)
        for wrong in (
            {},
            {"tls": True},
            {"authority": files["authority"]},
            {**files, "authority": str(strange.authority)},
            {**files, "certificate": str(strange.certificate), "key": str(strange.key)},
        ):
            with pytest.raises(RunError, match="UNAVAILABLE"):
                remote(service, **wrong).start({"things": side()})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"address": ""}, "teacher.address='': expected host:port"),
        ({"address": "here"}, "teacher.address='here'"),
        ({"consensus": 1.0}, "teacher.consensus=1.0: expected 0 <= value < 1"),
        ({"batch": 0}, "teacher_batch=0"),
        ({"timeout": 0.0}, "teacher_timeout=0.0"),
        ({"retries": -1}, "teacher_retries=-1"),
        ({"temperature": 0.0}, "teacher_temperature=0.0"),
        ({"scores": "probabilities", "form": "logits"}, "teacher.form='logits' with scores='probabilities'"),
        ({"certificate": "a.pem"}, "expected both or none"),
    ],
)
def test_options_that_cannot_be(options: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Remote(**{"address": "127.0.0.1:1", **options})


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        remote(1, authority=str(tmp_path / "none.pem")).start({"things": side()})
