"""From the answers of a round to what goes back: the consensus of each task, and what the teacher makes of it."""

from __future__ import annotations

from collections.abc import Mapping

from fedstill.common.algorithm import Algorithm, teaches
from fedstill.common.knowledge import KNOWLEDGE, LABEL_FREE, Contribution, Knowledge, Personal, SoftLabels
from fedstill.common.messages import Answer
from fedstill.common.sides import Server
from fedstill.server.holdings import ServerTask
from fedstill.server.teacher import LooksAhead, Teacher


def merge(
    method: Algorithm, tasks: Mapping[str, ServerTask], sides: Mapping[str, Server], answers: Mapping[str, Answer]
) -> dict[str, Personal]:
    """What each task that somebody spoke about has in common, and what is meant for one client alone.

    Every task is merged for its own clients: what is meant for another task's is left out here.
    """
    found: dict[str, Personal] = {}
    for name, side in sides.items():
        contributions = contributions_to(name, method, tasks, answers)
        if contributions or method.exchange not in KNOWLEDGE:
            merged = apart(side, method.merge(side, contributions))
            if merged is not None:
                found[name] = merged
    return found


def apart(side: Server, told: Knowledge | Personal | None) -> Personal | None:
    """What a method tells of a task, with its common part and what is meant for one of the task's own clients."""
    if not isinstance(told, Personal):
        return None if told is None else Personal(told, {})
    here = {client.name for client in side.clients}
    return Personal(told.common, {client: knowledge for client, knowledge in told.own.items() if client in here})


def consensus_of(merged: Mapping[str, Personal]) -> dict[str, Knowledge]:
    """The common part of each task that has one."""
    return {name: one.common for name, one in merged.items() if one.common is not None}


def teach(teacher: Teacher, sides: Mapping[str, Server], consensus: Mapping[str, Knowledge]) -> dict[str, Knowledge]:
    """What goes back: the teacher's soft labels where the consensus is made of such, else the consensus itself."""
    predicted = {name: one for name, one in consensus.items() if isinstance(one, SoftLabels)}
    return {**consensus, **(teacher.learn(sides, predicted) if predicted else {})}


def keeps_model(method: Algorithm, teacher: Teacher) -> bool:
    """Whether the server has a model that learns: the method's own, or the teacher's."""
    taught = method.exchange == SoftLabels.kind and teacher.has_model
    return method.exchange in ("parameters", "data") or taught or teaches(method)


def look_ahead(teacher: Teacher, method: Algorithm, tasks: Mapping[str, ServerTask]) -> None:
    """Let a teacher that has a part in the method find out whether it can teach, before anybody works.

    Raises:
        FedstillError: if it cannot.
    """
    if isinstance(teacher, LooksAhead) and method.exchange == SoftLabels.kind:
        teacher.look_ahead({name: task.spec for name, task in tasks.items()})


def contributions_to(
    task: str, method: Algorithm, tasks: Mapping[str, ServerTask], answers: Mapping[str, Answer]
) -> list[Contribution]:
    """What was said about a task, or about another that says the same of the same proxy samples."""
    found = []
    for client, answer in answers.items():
        for other, part in answer.tasks.items():
            if part.knowledge is not None and _one_subject(method, tasks[task], tasks[other]):
                who = client if other == task else f"{client}/{other}"
                found.append(Contribution(who, part.examples, part.knowledge))
    return found


def _one_subject(method: Algorithm, one: ServerTask, other: ServerTask) -> bool:
    """Whether knowledge about two tasks can be merged.

    They share their proxy samples, and their label space (an image and a recording of a digit) or the method exchanges
    what has no labels.
    """
    if one is other:
        return True
    if one.group != other.group:
        return False
    if method.exchange in LABEL_FREE:
        return True
    same = (one.spec.output, one.spec.classes) == (other.spec.output, other.spec.classes)
    return same and method.exchange == SoftLabels.kind
