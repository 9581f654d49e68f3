"""A model behind a gRPC endpoint teaches from the first round on: `fedstill serve`, Triton, KServe.

It speaks the Open Inference Protocol, version 2 (https://github.com/kserve/open-inference-protocol). The endpoint gets
proxy samples as the run's own models read them, nothing else, and each of them once: the answers are kept with the run.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common import check
from fedstill.common.ensemble import mean_soft_labels
from fedstill.common.errors import ConfigError, KnowledgeError, MismatchError, Reason, UnsupportedError, nearest
from fedstill.common.inference.about import classes_of
from fedstill.common.inference.endpoint import Endpoint, TlsFiles
from fedstill.common.inference.open_inference_pb2 import ModelMetadataResponse
from fedstill.common.inference.tensors import DATATYPES
from fedstill.common.knowledge import Form, SoftLabels
from fedstill.common.labels import Classes, ordered, positions
from fedstill.common.sides import Server
from fedstill.common.task import TaskSpec

log = logging.getLogger(__name__)

_VALUES, _KNOWN, _IDENTITY = "remote.values", "remote.known", "remote.identity"


@dataclass(frozen=True, slots=True)
class Remote:
    """A model behind a gRPC endpoint (Open Inference Protocol) teaches from the start; it does not learn.

    Attributes:
        address: of the endpoint, "host:port".
        model: its name there; "{task}" stands for the task.
        version: of the model; "" leaves it to the endpoint.
        input: name of the input; "" where there is one only.
        output: name of the output; "" for the only one, or that called like `scores`.
        scores: what the output holds: "logits" or "probabilities" (at temperature 1).
        classes: names in the order of the output's last axis; () for what the endpoint says itself.
        temperature: of the soft labels with which the run starts.
        form: "probabilities" or "logits", as the algorithm exchanges them.
        consensus: share of the consensus in what goes back after a round, from 0 to below 1.
        batch: proxy samples in one request.
        timeout: seconds for one request.
        retries: further tries of a request, after ½, 1, 2, … seconds.
        tls: use TLS, though no file is named.
        authority: PEM file of certificates that the endpoint's is checked against; "" for the machine's own.
        certificate: PEM file of the run's certificate, for an endpoint that asks for one.
        key: PEM file of its private key.
    """

    name: ClassVar[str] = "remote"
    paper: ClassVar[str] = ""
    has_model: ClassVar[bool] = False

    address: str = ""
    model: str = "{task}"
    version: str = ""
    input: str = ""
    output: str = ""
    scores: Literal["logits", "probabilities"] = "logits"
    classes: tuple[str, ...] = ()
    temperature: float = 1.0
    form: Form = "probabilities"
    consensus: float = 0.0
    batch: int = 128
    timeout: float = 30.0
    retries: int = 3
    tls: bool = False
    authority: str = ""
    certificate: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"teacher.address='{self.address}'", "expected host:port", "name a gRPC endpoint")
        check.one_of(("logits", "probabilities"), teacher_scores=self.scores)
        check.positive(teacher_temperature=self.temperature, teacher_timeout=self.timeout)
        check.at_least(1, teacher_batch=self.batch)
        check.at_least(0, teacher_retries=self.retries)
        if not 0 <= self.consensus < 1:
            raise ConfigError(
                f"teacher.consensus={self.consensus}", "expected 0 <= value < 1", "with 1, kind = 'consensus' is enough"
            )
        if self.scores == "probabilities" and self.form == "logits":
            raise ConfigError(
                "teacher.form='logits' with scores='probabilities'",
                "expected raw outputs to be sent on",
                "name an output of raw scores, or let the algorithm exchange probabilities",
            )
        TlsFiles(self.authority, self.certificate, self.key)

    def look_ahead(self, specs: Mapping[str, TaskSpec]) -> None:
        """Find out before a run whether the endpoint is there and has what each task needs.

        Raises:
            FedstillError: as `start`.
        """
        with self._endpoint() as endpoint:
            for spec in specs.values():
                self._agree(spec, self._described(endpoint, spec))

    def start(self, servers: Mapping[str, Server]) -> Mapping[str, SoftLabels]:
        """Ask about the first proxy samples.

        Raises:
            ConfigError: if the endpoint has no such model, input or output, or nobody names its classes.
            KnowledgeError: if what it says is malformed or not finite.
            MismatchError: if it reads other inputs, or knows other classes.
            RunError: if it cannot be reached.
        """
        return {
            name: self._soft_labels(server, server.samples, temperature=self.temperature, form=self.form)
            for name, server in servers.items()
        }

    def learn(self, servers: Mapping[str, Server], consensus: Mapping[str, SoftLabels]) -> Mapping[str, SoftLabels]:
        """Ask about the round's samples, at the consensus' temperature and in its form; mix it in if that is wanted.

        Raises:
            FedstillError: as `start`; the run can be resumed.
        """
        told = {}
        for name, labels in consensus.items():
            samples = np.union1d(servers[name].samples, labels.samples)
            own = self._soft_labels(servers[name], samples, temperature=labels.temperature, form=labels.form)
            told[name] = own
            if self.consensus:
                shares = [1 - self.consensus, self.consensus]
                told[name] = mean_soft_labels([own, labels], shares, space=servers[name].spec.classes)
        return told

    def _soft_labels(self, server: Server, samples: NDArray[np.int64], *, temperature: float, form: Form) -> SoftLabels:
        if form == "logits" and self.scores == "probabilities":
            raise UnsupportedError(
                "an algorithm that exchanges raw scores with teacher.scores='probabilities'",
                "expected raw outputs",
                "name an output of raw scores, or let the algorithm exchange probabilities",
            )
        classes, scores = self._scores(server, samples)
        values = scores
        if form == "probabilities":
            kind = server.spec.kind
            if self.scores == "logits":
                values = kind.soften(scores, temperature)
            elif temperature != 1:
                values = kind.power(scores, 1 / temperature)
            values = kind.blank(values, server.proxy.at(samples))
        return SoftLabels(server.spec.output, classes, samples, values.numpy(), temperature, form)

    def _scores(self, server: Server, samples: NDArray[np.int64]) -> tuple[Classes, Tensor]:
        """What the endpoint says of samples, float32 (N, …, C), and of which classes; it is asked for what is new."""
        rows = torch.from_numpy(samples)
        known = server.memory.get(_KNOWN, torch.zeros(len(server.proxy), dtype=torch.bool))
        due = rows[~known[rows]]
        if len(due):
            with self._endpoint() as endpoint:
                told = self._described(endpoint, server.spec)
                terms = self._agree(server.spec, told)
                _recognise(server, terms, told)
                answers = [self._asked(endpoint, server, terms, part) for part in torch.split(due, self.batch)]
            _keep(server, due, torch.cat(answers), known)
        classes = _remembered_classes(server)
        return classes, server.memory[_VALUES][rows]

    def _asked(self, endpoint: Endpoint, server: Server, terms: _Terms, rows: Tensor) -> Tensor:
        inputs = server.proxy.at(rows.numpy()).numpy()
        who = f"model '{self._name(server.spec)}' at {self.address}"
        array = endpoint.infer(
            self._name(server.spec), {terms.input: (terms.datatype, inputs)}, terms.output, version=self.version
        )
        wanted = (len(rows), *server.spec.positions, len(terms.names))
        if array.shape != wanted:
            raise KnowledgeError(f"answer of {who} of shape {array.shape}", f"expected {wanted}", reason=Reason.SHAPE)
        values = torch.from_numpy(array.astype(np.float32))
        finite = torch.isfinite(values).flatten(1).all(1)
        if not finite.all():
            raise KnowledgeError(
                f"answer of {who} for proxy sample {int(rows[~finite][0])}",
                "expected finite numbers",
                "mend the model, and resume the run",
                reason=Reason.NOT_FINITE,
            )
        return self._over_own(server.spec, terms, values, who)

    def _over_own(self, spec: TaskSpec, terms: _Terms, values: Tensor, who: str) -> Tensor:
        """The task's own classes in their order."""
        columns = torch.from_numpy(positions(terms.classes, terms.names))
        if self.scores == "logits":
            return values[..., columns]
        try:
            spec.kind.check(values)
        except KnowledgeError as error:
            raise KnowledgeError(
                f"answer of {who}: {error}", "", "set teacher.scores = 'logits' if these are raw outputs"
            ) from None
        if len(columns) == len(terms.names):
            return values[..., columns]
        return spec.kind.restrict(values, columns)[0]

    def _agree(self, spec: TaskSpec, told: ModelMetadataResponse) -> _Terms:
        """What goes where, from what the endpoint says of the model."""
        who = f"model '{told.name}' at {self.address}"
        _compare(who, spec, told.properties)
        inputs = {one.name: one for one in told.inputs}
        outputs = {one.name: one for one in told.outputs}
        source = inputs[_one_of(inputs, self.input, "", "teacher.input", who)]
        target = outputs[_one_of(outputs, self.output, self.scores, "teacher.output", who)]
        if not _fits(source.shape, spec.input_shape):
            raise MismatchError(
                f"{who} reads shape {list(source.shape)}",
                f"expected {[-1, *spec.input_shape]}, as the proxy samples of task '{spec.name}' are",
                "serve a model of this task's inputs",
            )
        _check_datatype(who, source.datatype, spec)
        names = self.classes or classes_of(told.properties)
        if not names:
            raise ConfigError(
                f"classes of {who}", "are named nowhere", "set teacher.classes in the order of the output's last axis"
            )
        if not _fits(target.shape, (*spec.positions, len(names))):
            raise MismatchError(
                f"{who} gives shape {list(target.shape)}", f"expected {[-1, *spec.positions, len(names)]}"
            )
        shared = ordered(names, spec.classes)
        partial = len(shared) < len(spec.classes)
        if not shared or len(set(names)) < len(names) or (partial and not spec.kind.has_classes):
            raise MismatchError(
                f"{who} knows the classes {list(names)[:5]}",
                f"expected those of task '{spec.name}': {list(spec.classes)[:5]}",
                "mend teacher.classes, or serve another model",
            )
        if partial:
            log.warning("%s knows %d of the %d classes of task '%s'", who, len(shared), len(spec.classes), spec.name)
        return _Terms(source.name, source.datatype, target.name, tuple(names), shared)

    def _described(self, endpoint: Endpoint, spec: TaskSpec) -> ModelMetadataResponse:
        return endpoint.metadata(self._name(spec), self.version)

    def _name(self, spec: TaskSpec) -> str:
        return self.model.replace("{task}", spec.name)

    def _endpoint(self) -> Endpoint:
        tls = TlsFiles(self.authority, self.certificate, self.key, required=self.tls)
        return Endpoint(self.address, tls=tls, timeout=self.timeout, retries=self.retries)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What is asked of an endpoint.

    Attributes:
        input, datatype: name and datatype of its input.
        output: name of its output.
        names: classes in the order of the output.
        classes: those that the task has too, in the task's order.
    """

    input: str
    datatype: str
    output: str
    names: Classes
    classes: Classes


def _one_of(there: Mapping[str, object], wanted: str, usual: str, key: str, who: str) -> str:
    if wanted in there:
        return wanted
    if not wanted and len(there) == 1:
        return next(iter(there))
    if not wanted and usual in there:
        return usual
    raise ConfigError(f"{key}='{wanted}'", f"expected a tensor of {who}", nearest(wanted, there))


def _fits(theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Whether a shape of the protocol, with -1 for any size, goes with rows of ours."""
    return len(theirs) == len(ours) + 1 and all(size in (-1, own) for size, own in zip(theirs[1:], ours, strict=True))


def _check_datatype(who: str, datatype: str, spec: TaskSpec) -> None:
    kind = DATATYPES[datatype].numpy if datatype in DATATYPES else None
    whole = kind is not None and kind.kind in "iu" and np.iinfo(kind).max >= spec.vocabulary - 1
    if not (whole if spec.vocabulary else kind is not None and kind.kind == "f"):
        raise MismatchError(
            f"{who} reads {datatype}",
            f"expected {'whole numbers up to ' + str(spec.vocabulary - 1) if spec.vocabulary else 'floats'}",
        )


def _compare(who: str, spec: TaskSpec, told: Mapping[str, str]) -> None:
    """What an endpoint of ours says of a model's task has to be true of the run's."""
    for key, ours in (("output", spec.output), ("modality", spec.modality), ("tokenizer", spec.tokenizer)):
        if ours and told.get(key, ours) != ours:
            raise MismatchError(f"{who} has {key} '{told[key]}'", f"expected '{ours}', as task '{spec.name}' has")


def _recognise(server: Server, terms: _Terms, told: ModelMetadataResponse) -> None:
    """Note which model answers; another one later in a run would change its numbers without a word.

    Raises:
        MismatchError: if it is not the one that answered before.
    """
    identity = json.dumps([told.name, terms.names, terms.classes, told.properties.get("weights", "")])
    proxy = told.properties.get("proxy", server.proxy.digest)
    now = torch.frombuffer(bytearray(identity.encode()), dtype=torch.uint8)
    before = server.memory.get(_IDENTITY)
    if before is None:
        server.memory[_IDENTITY] = now
        if proxy != server.proxy.digest:
            log.warning(
                "model '%s' was trained with inputs that were prepared by proxy set %s; this run's is %s",
                told.name,
                proxy,
                server.proxy.digest,
            )
    elif not torch.equal(before, now):
        raise MismatchError(
            f"model '{told.name}'",
            "is not the one that taught in the rounds before: its weights or classes differ",
            "serve that one and resume the run, or begin a new run",
        )


def _keep(server: Server, rows: Tensor, values: Tensor, known: Tensor) -> None:
    """Remember what was said of samples."""
    before = server.memory.get(_VALUES)
    kept = torch.zeros(len(server.proxy), *values.shape[1:]) if before is None else before.clone()
    kept[rows] = values
    server.memory[_VALUES] = kept
    server.memory[_KNOWN] = known.index_fill(0, rows, value=True)


def _remembered_classes(server: Server) -> Classes:
    """The classes of what is remembered."""
    return tuple(json.loads(bytes(server.memory[_IDENTITY].tolist()))[2])
