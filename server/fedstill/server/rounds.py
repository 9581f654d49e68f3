"""The round engine: plan, ask, admit, merge, teach, commit; then the next round.

    step 0        every client's model is trained alone and measured; method and teacher say what they know already
    step 1 … R    the rounds
    step R + 1    everybody takes in the last shared knowledge and is measured

A step takes a state and gives the next one; nothing else changes. It is committed to disk before the next begins, so
that a run goes on after a crash at any moment with the same numbers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common.algorithm import due, recalls
from fedstill.common.codec import with_context
from fedstill.common.context import Remembered, remember
from fedstill.common.errors import QuorumError, Reason, StoppedError
from fedstill.common.knowledge import Knowledge, Personal
from fedstill.common.learning import one_thread
from fedstill.common.messages import ALONE, FINISH, NO_SAMPLES, ROUND, Answer, Method, Metrics, Order, TaskOrder
from fedstill.common.models import build_model
from fedstill.common.packing import content_bytes
from fedstill.common.scenario import Scenario, options
from fedstill.common.seeding import derive, numpy_rng
from fedstill.common.sides import Server
from fedstill.server import merging, querying, telling
from fedstill.server import roster as rosters
from fedstill.server.admission import Gate, Rejection, TaskGate
from fedstill.server.exchange import Clock, Reply, ask
from fedstill.server.folder import RunFolder
from fedstill.server.gates import task_gate
from fedstill.server.holdings import ServerTask, spec_tables
from fedstill.server.measuring import measure
from fedstill.server.questions import Asked, replies, write_questions
from fedstill.server.record import Attempt, StepRecord, Traffic, client_measures, total
from fedstill.server.roster import Roster
from fedstill.server.state import RunState, TaskState
from fedstill.server.teacher import Teacher
from fedstill.server.trackers import Tracker

log = logging.getLogger(__name__)

_MESSAGES = {"alone": ALONE, "round": ROUND, "finish": FINISH}


@dataclass(frozen=True, slots=True)
class Pulse:
    """Progress inside a step, for whoever watches.

    Attributes:
        kind: "alone", "round" or "finish".
        step: its number.
        steps: number of the last step.
        attempt: from 1.
        asked: clients that work.
        answered: replies so far.
    """

    kind: str
    step: int
    steps: int
    attempt: int
    asked: int
    answered: int


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run and all that it needs.

    Attributes:
        scenario: what is to be done.
        grid: Flower's way to the clients.
        tasks: what the server holds, by task.
        teacher: the server's part in a method that exchanges predictions.
        folder: where the run is kept.
        trackers: told of every committed step.
        pulse: told of the progress inside a step.
        committed: given the state after every committed step.
        stopping: whether the run is to end at the border of this step.
        clock: monotonic, in seconds.
    """

    scenario: Scenario
    grid: Grid
    tasks: Mapping[str, ServerTask]
    teacher: Teacher
    folder: RunFolder
    trackers: Sequence[Tracker] = ()
    pulse: Callable[[Pulse], None] = lambda _: None
    committed: Callable[[RunState], None] = lambda _: None
    stopping: Callable[[], bool] = lambda: False
    clock: Clock = time.monotonic

    @property
    def last(self) -> int:
        """Number of the last step."""
        return self.scenario.rounds.count + 1


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One step of a run, about to be made.

    Attributes:
        run: the run.
        roster: its clients.
        state: from which the step begins.
        step: its number.
    """

    run: Run
    roster: Roster
    state: RunState
    step: int

    @property
    def kind(self) -> str:
        """What kind of step it is: "alone", "round" or "finish"."""
        return "alone" if self.step == 0 else "finish" if self.step == self.run.last else "round"


@dataclass(frozen=True, slots=True)
class Collected:
    """What came of asking a cohort.

    Attributes:
        attempt: who was asked, who counts, who does not.
        answers: what was admitted, by client, in the order of names.
        restarted: clients that had lost their student.
        traffic: bytes.
        heard: what they were told about each task, as it came out of the codec.
    """

    attempt: Attempt
    answers: Mapping[str, Answer]
    restarted: Sequence[str]
    traffic: Traffic
    heard: Mapping[str, Knowledge | None] = field(default_factory=dict)


NOBODY = Collected(Attempt(1, (), (), ()), {}, (), Traffic({}, {}))
"""A step in which no client works."""


def play(run: Run, state: RunState | None = None) -> RunState:
    """Play a run to its end.

    Args:
        run: what is to be played.
        state: where it stands; None for its beginning.

    Raises:
        QuorumError: if too few clients answer, again and again; the run can be resumed.
        StorageError: if the disk refuses; the run can be resumed.
        StoppedError: if `run.stopping` says so; the run can be resumed.
        UnsupportedError: if method, models and tasks do not go together.
        FedstillError: what a teacher that looks ahead finds wrong.
    """
    with one_thread():
        state = state or RunState(step=-1, tasks={})
        if state.step >= run.last:
            return state
        if state.step < 0:
            merging.look_ahead(run.teacher, run.scenario.algorithm, run.tasks)
        roster = _roster(run)
        for step in range(state.step + 1, run.last + 1):
            state = _advance(Turn(run, roster, state, step))
            run.folder.commit(state)
            for tracker in run.trackers:
                tracker.on_step(state.record)
            run.committed(state)
            if step < run.last and run.stopping():
                raise StoppedError(f"run {run.folder.name}", f"stopped after step {step} of {run.last}", "resume it")
        return state


def _roster(run: Run) -> Roster:
    clients, deadline = run.scenario.clients, run.scenario.rounds.deadline
    least = max(1, math.ceil(clients.cohort * clients.quorum * clients.count))
    roster = rosters.gather(run.grid, run.tasks, count=clients.count, least=least, deadline=deadline)
    rosters.check_tasks(roster, run.tasks)
    rosters.check_models(roster, run.scenario.algorithm, run.tasks)
    labels = {name: list(task.spec.classes) for name, task in run.tasks.items()}
    run.folder.add(roster=roster.table(), refused=roster.refused, labels=labels, specs=spec_tables(run.tasks))
    return roster


def _advance(turn: Turn) -> RunState:
    run, state = turn.run, turn.state
    begun = run.clock()
    collected, abandoned = _ask_clients(turn)
    sides = {name: _server_side(turn, name) for name in run.tasks}
    # A task that nobody spoke about keeps what it had.
    told = {name: task.knowledge for name, task in state.tasks.items()}
    personal = {name: task.personal for name, task in state.tasks.items()}
    consensus: Mapping[str, Knowledge] = {}
    if turn.kind == "alone":
        first = _start(run, sides)
        told = {name: one.common for name, one in first.items()}
        personal = {name: one.own for name, one in first.items()}
    elif turn.kind == "round":
        merged = merging.merge(run.scenario.algorithm, run.tasks, sides, collected.answers)
        consensus = merging.consensus_of(merged)
        told |= dict.fromkeys(merged) | merging.teach(run.teacher, sides, consensus)
        personal |= {name: one.own for name, one in merged.items()}
    measures: dict[str, Metrics] = {}
    tasks = {}
    for name, side in sides.items():
        knowledge = told.get(name)
        with_model = merging.keeps_model(run.scenario.algorithm, run.teacher) and _knows(turn, knowledge)
        measures[name] = measure(run.tasks[name], side, consensus.get(name), with_model=with_model)
        weights = {key: value.clone() for key, value in side.model.state_dict().items()}
        own, heard = _remembered(turn, name, collected)
        recalled = _recalled(turn, name, collected, knowledge)
        pool = querying.after(
            run.tasks[name], _pool(turn, name), [*collected.answers.values()], consensus.get(name), step=turn.step
        )
        memory = dict(side.memory)
        tasks[name] = TaskState(knowledge, weights, memory, own, heard, personal.get(name, {}), recalled, pool)
    saved = {} if turn.kind == "alone" else dict.fromkeys(collected.answers, turn.step)
    introductions = [turn.roster.traffic] if turn.kind == "alone" else []
    record = StepRecord(
        kind=turn.kind,
        step=turn.step,
        attempt=collected.attempt,
        abandoned=[one.attempt for one in abandoned],
        traffic=total([one.traffic for one in (*abandoned, collected)] + introductions),
        seconds=run.clock() - begun,
        server=measures,
        clients=client_measures(collected.answers),
        restarted=collected.restarted,
    )
    return RunState(step=turn.step, tasks=tasks, versions={**state.versions, **saved}, record=record.table())


def _remembered(turn: Turn, task: str, collected: Collected) -> tuple[dict[str, Remembered], Remembered | None]:
    """What clients told and heard, for a codec that makes use of it."""
    if turn.kind == "alone" or with_context(turn.run.scenario.codec) is None:
        return {}, None
    own = dict(turn.state.tasks[task].own)
    for client, answer in collected.answers.items():
        told = remember(answer.tasks[task].knowledge) if task in answer.tasks else None
        if told is not None:
            own[client] = told
    # Who was told something of their own is told the next without a word of it: the server remembers one for all.
    return own, None if turn.state.tasks[task].personal else remember(collected.heard.get(task))


def _recalled(turn: Turn, task: str, collected: Collected, knowledge: Knowledge | None) -> Mapping[str, Tensor]:
    """Who holds which labels, for a method whose clients keep them."""
    if not recalls(turn.run.scenario.algorithm):
        return {}
    before = turn.state.tasks.get(task)
    return telling.after(
        before.recalled if before is not None else {},
        heard=before.knowledge if before is not None else None,
        clients=[name for name, answer in collected.answers.items() if task in answer.tasks],
        lost=collected.restarted,
        knowledge=knowledge,
        step=turn.step,
        size=len(turn.run.tasks[task].proxy),
    )


def _ask_clients(turn: Turn) -> tuple[Collected, list[Collected]]:
    """What the clients answer, and the attempts before that were abandoned."""
    scenario = turn.run.scenario
    if scenario.algorithm.exchange == "data" or (turn.kind == "alone" and not scenario.alone):
        return NOBODY, []
    if turn.kind == "round":
        return _until_quorum(turn)
    return _collect(turn, turn.roster.names, attempt=1), []


def _until_quorum(turn: Turn) -> tuple[Collected, list[Collected]]:
    """Ask cohorts until enough of one answer; each that does not is abandoned without a trace in the state."""
    limits = turn.run.scenario.rounds
    abandoned: list[Collected] = []
    for number in range(1, limits.attempts + 1):
        cohort = draw_cohort(turn.roster.names, turn.run.scenario, turn.step, number)
        needed = max(1, math.ceil(turn.run.scenario.clients.quorum * len(cohort)))
        collected = _collect(turn, cohort, attempt=number)
        if len(collected.answers) >= needed:
            return collected, abandoned
        abandoned.append(collected)
        log.warning(
            "round %d, attempt %d of %d abandoned: %d of %d clients answered, %d are needed (%s)",
            turn.step,
            number,
            limits.attempts,
            len(collected.answers),
            len(cohort),
            needed,
            why(collected.attempt.rejected),
        )
        if number < limits.attempts:
            time.sleep(limits.backoff * 2 ** (number - 1))
    last = abandoned[-1].attempt
    raise QuorumError(
        f"round {turn.step}: {len(last.accepted)} of {len(last.cohort)} clients answered, {limits.attempts} times",
        f"expected at least {needed} ({why(last.rejected)})",
        "mend the clients and resume the run",
    )


def draw_cohort(names: Sequence[str], scenario: Scenario, step: int, attempt: int) -> tuple[str, ...]:
    """The clients of one attempt at a round: a seeded sample without replacement, sorted."""
    size = max(1, round(scenario.clients.cohort * len(names)))
    if size == len(names):
        return tuple(names)
    chosen = numpy_rng(scenario.seed, "cohort", step, attempt).choice(len(names), size, replace=False)
    return tuple(names[place] for place in sorted(chosen))


def why(rejections: Sequence[Rejection]) -> str:
    """Rejections in a few words: "2 client-error (…), 1 no-answer"."""
    details: dict[Reason, list[str]] = {}
    for rejection in rejections:
        details.setdefault(rejection.reason, []).append(rejection.detail)
    return ", ".join(f"{len(found)} {reason} ({found[0]})" for reason, found in details.items()) or "none rejected"


def _collect(turn: Turn, cohort: Sequence[str], *, attempt: int) -> Collected:
    """Ask a cohort, admit what comes, and say who did not count."""
    run, limits = turn.run, turn.run.scenario.rounds
    about = {name: _asked_about(turn, name) for name in run.tasks}
    orders = {name: _order(turn, name, attempt, about) for name in cohort}
    questions, orders, down = write_questions(orders)
    gates = _gates(turn)
    up: dict[str, int] = {}
    answers: dict[str, Answer] = {}
    rejected: list[Rejection] = []
    pulse = Pulse(turn.kind, turn.step, run.last, attempt, len(cohort), answered=0)
    run.pulse(pulse)
    for reply in replies(Asked(questions, orders, up, down), partial(_ask, turn)):
        gate = Gate(reply.client, orders[reply.client], gates, limits.largest_message)
        admitted = gate.admit(reply.message, answered=reply.again, fault=reply.fault)
        if isinstance(admitted, Answer):
            answers[reply.client] = admitted
        else:
            rejected.append(admitted)
        if reply.message.has_content():
            up[reply.client] = up.get(reply.client, 0) + content_bytes(reply.message.content)
        if not reply.again:
            pulse = replace(pulse, answered=pulse.answered + 1)
            run.pulse(pulse)
    silent = set(cohort) - answers.keys() - {rejection.client for rejection in rejected}
    rejected += [Rejection(name, Reason.NO_ANSWER, f"none within {limits.deadline:g} s") for name in sorted(silent)]
    for rejection in rejected:
        log.info(
            "%s %d: %s does not count: %s: %s",
            turn.kind,
            turn.step,
            rejection.client,
            rejection.reason,
            rejection.detail,
        )
    accepted = {name: answers[name] for name in sorted(answers)}
    known = turn.state.versions
    lost = [name for name, answer in accepted.items() if turn.kind != "alone" and answer.version != known.get(name, 0)]
    ordered = sorted(rejected, key=lambda rejection: rejection.client)
    heard = {name: task.knowledge for order in orders.values() for name, task in order.tasks.items()}
    told = Attempt(attempt, tuple(cohort), tuple(accepted), ordered)
    return Collected(told, accepted, lost, Traffic(up, down), heard)


def _ask(turn: Turn, questions: Mapping[str, RecordDict]) -> Iterator[Reply]:
    return ask(
        turn.run.grid,
        questions,
        turn.roster.nodes,
        kind=_MESSAGES[turn.kind],
        group=str(turn.step),
        deadline=turn.run.scenario.rounds.deadline,
        clock=turn.run.clock,
        largest=turn.run.scenario.rounds.largest_message,
    )


def _order(turn: Turn, client: str, attempt: int, about: Mapping[str, NDArray[np.int64]]) -> Order:
    run, scenario = turn.run, turn.run.scenario
    tasks = {}
    version = turn.state.versions.get(client, 0)
    # Who answered in the last step heard what was told there; a second attempt takes nothing for granted.
    up_to_date = version == turn.state.step and attempt == 1
    for name in turn.roster.descriptions[client].tasks:
        task = TaskOrder(run.tasks[name].proxy.digest, about[name])
        if turn.kind != "alone":
            state = turn.state.tasks[name]
            heard = state.heard if up_to_date and not recalls(scenario.algorithm) else None
            task = replace(task, knowledge=state.told(client), own=state.own.get(client), heard=heard)
            if recalls(scenario.algorithm):
                task = replace(task, recalled=telling.remembered(state.recalled, client, state.knowledge))
        tasks[name] = task
    method = Method(scenario.algorithm.name, options(scenario.algorithm), scenario.training, scenario.codec)
    return Order(
        run=run.folder.name,
        round=turn.step,
        rounds=scenario.rounds.count,
        attempt=attempt,
        seed=scenario.seed,
        version=version,
        method=method,
        tasks=tasks,
    )


def _samples(turn: Turn, task: str) -> NDArray[np.int64]:
    """The proxy samples that this step is about; what is told at the start is about those of round 1."""
    own = turn.run.tasks[task]
    seed = derive(turn.run.scenario.seed, "samples", own.group, max(turn.step, 1))
    return querying.chosen(own, _pool(turn, task), seed=seed)


def _pool(turn: Turn, task: str) -> Mapping[str, Tensor]:
    before = turn.state.tasks.get(task)
    return before.pool if before is not None else {}


def _asked_about(turn: Turn, task: str) -> NDArray[np.int64]:
    """The proxy samples that clients answer on: this step's, or fewer for a method that chooses."""
    if turn.kind != "round":
        return NO_SAMPLES
    choose = due(turn.run.scenario.algorithm)
    return _samples(turn, task) if choose is None else choose(_server_side(turn, task))


def _gates(turn: Turn) -> dict[str, TaskGate]:
    run, method = turn.run, turn.run.scenario.algorithm
    return {
        name: task_gate(
            task,
            method,
            turn.roster.infos(name),
            exchange=method.exchange if turn.kind == "round" else "nothing",
            model=_model_name(turn, name),
            weights=turn.state.tasks[name].model if turn.kind == "round" else {},
            samples=len(_samples(turn, name)),
        )
        for name, task in run.tasks.items()
    }


def _server_side(turn: Turn, name: str) -> Server:
    own, scenario, infos = turn.run.tasks[name], turn.run.scenario, turn.roster.infos(name)
    model_name = _model_name(turn, name)
    model = build_model(model_name, own.spec, seed=derive(scenario.seed, "server", name))
    before = turn.state.tasks.get(name)
    if before is not None:
        model.load_state_dict(dict(before.model))
    return Server(
        spec=own.spec,
        model_name=model_name,
        model=model,
        proxy=own.proxy,
        samples=_samples(turn, name),
        training=scenario.training,
        seed=derive(scenario.seed, "server", name, turn.step),
        round=turn.step,
        memory=dict(before.memory) if before is not None else {},
        clients=tuple(infos.values()),
        rounds=scenario.rounds.count,
        group=own.group,
        pooled=own.pooled,
    )


def _model_name(turn: Turn, name: str) -> str:
    """Architecture of the server's model of a task."""
    infos = turn.roster.infos(name)
    # A method that sends weights averages into the clients' architecture; `check_models` has seen that they have one.
    same = turn.run.scenario.algorithm.homogeneous and bool(infos)
    return next(iter(infos.values())).model if same else turn.run.tasks[name].model


def _start(run: Run, sides: Mapping[str, Server]) -> dict[str, Personal]:
    """What is told before any client has spoken: by the method, or else by the teacher."""
    method = run.scenario.algorithm
    told = {name: merging.apart(side, method.start(side)) for name, side in sides.items()}
    silent = {name: side for name, side in sides.items() if told[name] is None}
    known = dict(run.teacher.start(silent)) if silent and method.exchange == "soft-labels" else {}
    return {name: one or Personal(known.get(name), {}) for name, one in told.items()}


def _knows(turn: Turn, told: Knowledge | None) -> bool:
    """A model that has seen nothing is not worth a measurement: before the rounds, one that has something to tell."""
    return turn.kind != "alone" or told is not None
