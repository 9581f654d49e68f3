"""What a client does: describe itself, train alone, work in a round, finish. No word of Flower here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedstill.client.adaptive import Adaptive, Score, blend, held_out_score
from fedstill.client.guard import Guard
from fedstill.client.holdings import Holding, Holdings
from fedstill.client.store import Store
from fedstill.common import __version__
from fedstill.common.algorithm import Algorithm, recalls, weighs
from fedstill.common.cache import LabelCache, updated
from fedstill.common.codec import with_context
from fedstill.common.context import Memories, Remembered, remember, remember_through
from fedstill.common.errors import MismatchError, Reason
from fedstill.common.handshake import check_schema, check_software, schema
from fedstill.common.knowledge import Knowledge, SoftLabels
from fedstill.common.learning import predict
from fedstill.common.messages import Answer, Description, Metrics, Order, Question, TaskAnswer, TaskDescription
from fedstill.common.metrics import class_accuracy
from fedstill.common.models import build_model, parameter_count
from fedstill.common.registry import ALGORITHMS
from fedstill.common.scenario import build
from fedstill.common.seeding import derive
from fedstill.common.sides import Client, Memory

_MEMORY = "memory."
_MODEL = "model."
_OWN, _HEARD, _TOLD = "own.", "heard.", "told."


@dataclass(frozen=True, slots=True)
class Worker:
    """A client at work.

    Attributes:
        holdings: what it has.
        store: where its student lies.
        guard: what may leave it.
        algorithms: methods that are not installed, by name, beside those that are.
    """

    holdings: Holdings
    store: Store
    guard: Guard
    algorithms: Mapping[str, type[Algorithm]]

    def describe(self, question: Question | None = None) -> Description:
        """What the server has to know before a run.

        Args:
            question: what the server says of itself; None from nobody.

        Raises:
            MismatchError: if the two sides differ.
            RefusalError: if the client's owner has not pinned the public samples.
        """
        tasks = {}
        for name, holding in self._asked_for(question).items():
            self.guard.check_pinned(name, holding.proxy.digest)
            model = build_model(holding.model, holding.spec, seed=0)
            tasks[name] = TaskDescription(
                output=holding.spec.output,
                modality=holding.spec.modality,
                classes=holding.spec.classes,
                input_shape=holding.spec.input_shape,
                model=holding.model,
                parameters=parameter_count(model),
                examples=len(holding.data.private),
                proxy_digest=holding.proxy.digest,
                positions=holding.spec.positions,
                tokenizer=holding.spec.tokenizer,
            )
        return Description(self.holdings.name, __version__, tasks)

    def _asked_for(self, question: Question | None) -> Mapping[str, Holding]:
        """The client's tasks that a server has too, in the same form."""
        if question is None:
            return self.holdings.tasks
        check_software(question.software)
        held = {name: one for name, one in self.holdings.tasks.items() if name in question.tasks or not question.tasks}
        if not held:
            raise MismatchError(
                f"tasks {', '.join(question.tasks)}",
                f"expected one of {', '.join(self.holdings.tasks)}",
                "name the tasks alike on both sides",
                reason=Reason.TASK,
            )
        for name in question.tasks.keys() & held.keys():
            ours = schema(held[name].whole, held[name].proxy.digest)
            check_schema(f"the server's task '{name}'", question.tasks[name], ours)
        return held

    def alone(self, order: Order) -> Answer:
        """Train a new student alone for the whole run's steps and measure it: the floor for this client.

        Exactly what the method "local" would do over the run: a new optimiser a round, the same seeds.
        """
        answers, kept = {}, {}
        for name, side in self._sides(order, {}).items():
            curve = []
            for number in range(1, order.rounds + 1):
                side.round, side.seed = number, self._seed(order, name, number)
                side.train()
                if side.training.adaptive:
                    curve.append(self._score(name, side))
            answers[name] = self._answer(name, side, metrics=self._measure(name, side, "alone"))
            if side.training.adaptive:
                kept[name] = Adaptive(torch.tensor(curve, dtype=torch.float64), side.model.state_dict())
        if kept:
            self.store.save(0, _adaptive_tensors(kept), base=0)
        return self._reply(order, 0, answers)

    def round(self, order: Order) -> Answer:
        """Take in the shared knowledge, learn from private data, answer, and keep the student."""
        method = self._method(order)
        found, saved = self.store.load(order.version)
        sides = self._sides(order, saved)
        adaptive = _adaptive(sides, saved)
        answers = {}
        for name, side in sides.items():
            metrics: Metrics = {}
            received = order.tasks[name].knowledge
            if received is not None:
                self._absorb(method, side, received, adaptive.get(name))
                metrics |= self._measure(name, side, "distilled")
            knowledge = self.guard.release(method.local(side))
            metrics |= self._measure(name, side, "trained")
            if name in adaptive:
                adaptive[name] = adaptive[name].heard(order.round, self._score(name, side))
                metrics["trained.teacher-weight"] = adaptive[name].weight
            answers[name] = replace(self._answer(name, side, metrics=metrics), knowledge=knowledge)
        told = {name: answer.knowledge for name, answer in answers.items()}
        self._save(order, sides, adaptive, told, saved if recalls(method) and found == order.version else {})
        return self._reply(order, found, answers)

    def finish(self, order: Order) -> Answer:
        """Take in the last shared knowledge: the student that stays."""
        method = self._method(order)
        found, saved = self.store.load(order.version)
        sides = self._sides(order, saved)
        adaptive = _adaptive(sides, saved)
        answers = {}
        for name, side in sides.items():
            received = order.tasks[name].knowledge
            if received is not None:
                self._absorb(method, side, received, adaptive.get(name))
            alone = name in adaptive and self._keep_better(name, side, adaptive[name])
            metrics = self._measure(name, side, "final")
            if name in adaptive:
                metrics["final.kept-alone"] = float(alone)
            answers[name] = self._answer(name, side, metrics=metrics)
        self._save(order, sides, adaptive)
        return self._reply(order, found, answers)

    def _absorb(self, method: Algorithm, side: Client, received: Knowledge, adaptive: Adaptive | None) -> None:
        if adaptive is not None and side.spec.output in weighs(method):
            side.trust = adaptive.weight
        elif adaptive is not None:
            self._absorb_in_part(method, side, received, adaptive.weight)
            return
        method.absorb(side, received)

    def _absorb_in_part(self, method: Algorithm, side: Client, received: Knowledge, weight: float) -> None:
        before = {key: value.clone() for key, value in side.model.state_dict().items()}
        method.absorb(side, received)
        blend(side.model, before, weight)

    def _keep_better(self, name: str, side: Client, adaptive: Adaptive) -> bool:
        """Take the student that was trained alone if it is better on the client's held-out examples."""
        distilled = {key: value.clone() for key, value in side.model.state_dict().items()}
        score = self._score(name, side)
        side.model.load_state_dict(dict(adaptive.alone))
        if self._score(name, side) > score:
            return True
        side.model.load_state_dict(distilled)
        return False

    def _score(self, name: str, side: Client) -> Score:
        return held_out_score(self.holdings.tasks[name], side.model, side.spec.classes, side.training)

    def _method(self, order: Order) -> Algorithm:
        known = self.algorithms.get(order.method.algorithm)
        kind = known or ALGORITHMS.get(order.method.algorithm)
        method: Algorithm = build(kind, order.method.options, "algorithm")
        return method

    def _seed(self, order: Order, task: str, number: int) -> int:
        return derive(order.seed, "client", self.holdings.name, task, number)

    def _sides(self, order: Order, saved: Mapping[str, Tensor]) -> dict[str, Client]:
        self.guard.check_order(order, self.holdings)
        return {
            name: self._side(order, name, holding, saved)
            for name, holding in self.holdings.tasks.items()
            if name in order.tasks
        }

    def _side(self, order: Order, name: str, holding: Holding, saved: Mapping[str, Tensor]) -> Client:
        model = build_model(holding.model, holding.spec, seed=derive(order.seed, "student", self.holdings.name, name))
        weights = student_weights(saved, name)
        if weights:
            model.load_state_dict(weights)
        memory: Memory = _under(saved, f"{name}.{_MEMORY}")
        return Client(
            spec=holding.spec,
            model_name=holding.model,
            model=model,
            proxy=holding.proxy,
            samples=order.tasks[name].samples,
            training=order.method.training,
            seed=self._seed(order, name, order.round),
            round=order.round,
            rounds=order.rounds,
            memory=memory,
            name=self.holdings.name,
            private=holding.data.private,
        )

    def _save(
        self,
        order: Order,
        sides: Mapping[str, Client],
        adaptive: Mapping[str, Adaptive],
        told: Mapping[str, Knowledge | None] = {},
        saved: Mapping[str, Tensor] = {},
    ) -> None:
        tensors = _kept(order, saved) if recalls(self._method(order)) else {}
        for name, knowledge in told.items():
            if with_context(order.method.codec) is not None:
                tensors |= _memory_tensors(f"{name}.{_OWN}", remember_through(knowledge, order.method.codec))
                tensors |= _memory_tensors(f"{name}.{_HEARD}", remember(order.tasks[name].knowledge))
        for name, side in sides.items():
            tensors |= {f"{name}.{_MODEL}{key}": value for key, value in side.model.state_dict().items()}
            tensors |= {f"{name}.{_MEMORY}{key}": value for key, value in side.memory.items()}
        self.store.save(order.round, tensors | _adaptive_tensors(adaptive), base=order.version)

    def _measure(self, name: str, side: Client, when: str) -> Metrics:
        """Measures on the common test samples, or on the client's own ones; its own always as "own"."""
        holding = self.holdings.tasks[name]
        metrics: Metrics = {}
        for part, examples in (("", holding.test), ("own-", holding.data.holdout)):
            if examples is None or not len(examples):
                continue
            logits = predict(side.model, examples.inputs, training=side.training)
            measured = holding.task.measure(logits, examples.targets, side.spec.classes)
            metrics |= {f"{when}.{part}{key}": value for key, value in measured.items()}
            if not part and side.spec.output == "categorical" and logits.dim() == 2:
                rates = class_accuracy(logits, examples.targets, len(side.spec.classes))
                metrics[f"{when}.class-accuracy"] = rates
        return metrics

    def _answer(self, name: str, side: Client, *, metrics: Metrics) -> TaskAnswer:
        return TaskAnswer(side.proxy.digest, len(side.private), None, metrics)

    def _reply(self, order: Order, version: int, tasks: Mapping[str, TaskAnswer]) -> Answer:
        return Answer(self.holdings.name, order.run, order.round, order.attempt, version, tasks)


def student_weights(saved: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """The weights of a task's student among what a client saved; {} if there is none."""
    return _under(saved, f"{task}.{_MODEL}")


def recall(store: Store, version: int, task: str) -> Memories:
    """What a client remembers of a task after a version of its student; nothing if it has lost that version."""
    found, saved = store.load(version)
    if found != version:
        return Memories()
    own, heard, told = (_under(saved, f"{task}.{part}") for part in (_OWN, _HEARD, _TOLD))
    return Memories(_remembered(own), _remembered(heard), LabelCache.from_tensors(told))


def _kept(order: Order, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All labels that the client has been told, as it keeps them; `saved` is what it kept before."""
    tensors: dict[str, Tensor] = {}
    for name, task in order.tasks.items():
        cache = LabelCache.from_tensors(_under(saved, f"{name}.{_TOLD}"))
        if isinstance(task.knowledge, SoftLabels):
            cache = updated(cache, task.knowledge, order.round)
        if cache is not None:
            tensors |= {f"{name}.{_TOLD}{key}": value for key, value in cache.tensors().items()}
    return tensors


def _remembered(tensors: Mapping[str, Tensor]) -> Remembered | None:
    return Remembered.from_arrays({key: value.numpy() for key, value in tensors.items()}) if tensors else None


def _memory_tensors(prefix: str, memory: Remembered | None) -> dict[str, Tensor]:
    return {} if memory is None else {prefix + key: torch.from_numpy(array) for key, array in memory.arrays().items()}


def _adaptive(sides: Mapping[str, Client], saved: Mapping[str, Tensor]) -> dict[str, Adaptive]:
    """What each task's student was alone; nothing if that is not asked for, or the client has lost it."""
    found = {
        name: Adaptive.from_tensors(_under(saved, f"{name}."))
        for name, side in sides.items()
        if side.training.adaptive and len(side.private)
    }
    return {name: one for name, one in found.items() if one is not None}


def _adaptive_tensors(adaptive: Mapping[str, Adaptive]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, one in adaptive.items() for key, value in one.tensors().items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
