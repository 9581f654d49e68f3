"""Who takes part: every node is asked once to describe itself, and is known by its name from then on.

Node ids are Flower's and may change when a run is resumed; names stay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flwr.serverapp import Grid

from fedstill.common import __version__, introduction
from fedstill.common.algorithm import Algorithm, check_clients, own_weights
from fedstill.common.errors import FedstillError, MismatchError, QuorumError, Reason, UnsupportedError
from fedstill.common.handshake import Schema, check_schema, check_software, schema
from fedstill.common.messages import DESCRIBE, Description, Question, TaskDescription
from fedstill.common.models import model_names
from fedstill.common.packing import content_bytes, packed
from fedstill.common.sides import ClientInfo
from fedstill.common.wire import LONGEST_NAME
from fedstill.server.admission import fit_to_show, last_line
from fedstill.server.exchange import ask
from fedstill.server.holdings import ServerTask
from fedstill.server.inbox import patiently
from fedstill.server.record import Traffic

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Roster:
    """The clients of a run.

    Attributes:
        nodes: Flower's node id, by client name, in the order of names.
        descriptions: what each said of itself.
        refused: why a node does not take part, by its id, as text.
        traffic: bytes of the descriptions, and of the questions for them.
    """

    nodes: Mapping[str, int]
    descriptions: Mapping[str, Description]
    refused: Mapping[str, str]
    traffic: Traffic

    @property
    def names(self) -> tuple[str, ...]:
        """The clients' names, sorted."""
        return tuple(self.nodes)

    def infos(self, task: str) -> dict[str, ClientInfo]:
        """What is known of everybody who has a task, by name."""
        found = {}
        for name, description in self.descriptions.items():
            if task in description.tasks:
                told = description.tasks[task]
                found[name] = ClientInfo(name, told.model, told.parameters, told.examples, told.classes)
        return found

    def table(self) -> dict[str, Any]:
        """For config.toml: client → task → model, size, examples, classes."""
        return {
            name: {
                task: {key: _plain(value) for key, value in asdict(told).items() if key in _TOLD}
                | {"software": description.software}
                for task, told in description.tasks.items()
            }
            for name, description in self.descriptions.items()
        }


_TOLD = ("model", "parameters", "examples", "classes")


def gather(grid: Grid, tasks: Mapping[str, ServerTask], *, count: int, least: int, deadline: float) -> Roster:
    """Wait for the clients and let each describe itself.

    Args:
        grid: Flower's.
        tasks: the run's tasks.
        count: for how many nodes to wait.
        least: with how many the run may begin when the deadline has passed.
        deadline: seconds.

    Raises:
        QuorumError: if fewer than `least` clients can take part.
    """
    ids = _wait_for_nodes(grid, count, deadline)
    asked = {f"node {number}": number for number in ids}
    question = introduction.write_question(
        Question(__version__, {name: schema(task.spec, task.proxy.digest) for name, task in tasks.items()})
    )
    questions = dict.fromkeys(asked, packed(question))
    told: dict[str, tuple[int, Description]] = {}
    sizes: dict[str, int] = {}
    refused: dict[str, str] = {}
    for reply in ask(grid, questions, asked, kind=DESCRIBE, group="describe", deadline=deadline):
        node = asked[reply.client]
        try:
            if reply.fault is not None:
                raise reply.fault
            if reply.message.has_error():
                refused[str(node)] = last_line(reply.message.error.reason or "no reason given")
                continue
            refusal = introduction.read_refusal(reply.message.content)
            if refusal is not None:
                refused[str(node)] = f"{refusal.reason}: {refusal.detail}"
                continue
            description = introduction.read_description(reply.message.content)
            _check(description, tasks)
            if description.client in told:
                refused[str(node)] = f"a second node calls itself '{description.client}'"
                continue
            told[description.client] = (node, description)
            sizes[description.client] = content_bytes(reply.message.content)
        except (FedstillError, ValueError, TypeError, KeyError) as error:
            refused[str(node)] = str(error)
    refused = {identity: fit_to_show(why) for identity, why in refused.items()}
    for identity, why in refused.items():
        log.warning("node %s does not take part: %s", identity, why)
    if len(told) < least:
        reasons = "; ".join(sorted(set(refused.values()))[:3])
        raise QuorumError(
            f"{len(told)} of {len(ids)} clients can take part",
            f"expected at least {least} within {deadline:g} s",
            reasons or "start the clients, or raise rounds.deadline",
        )
    names = sorted(told)
    return Roster(
        nodes={name: told[name][0] for name in names},
        descriptions={name: told[name][1] for name in names},
        refused=refused,
        traffic=Traffic(sizes, dict.fromkeys(names, content_bytes(packed(question)))),
    )


def check_tasks(roster: Roster, tasks: Mapping[str, ServerTask]) -> None:
    """Refuse a run with a task that no client has.

    Raises:
        UnsupportedError: naming the task.
    """
    for task in tasks:
        if not roster.infos(task):
            raise UnsupportedError(
                f"task '{task}', which no client has", "expected at least one", "start a client for it, or leave it out"
            )


def check_models(roster: Roster, algorithm: Algorithm, tasks: Mapping[str, ServerTask]) -> None:
    """Refuse a method that averages weights where clients know different classes, or have models that it cannot have.

    Raises:
        UnsupportedError: naming the architectures, or a client that lacks classes.
    """
    for task, own in tasks.items():
        infos = roster.infos(task).values()
        partial = [info for info in infos if info.classes != own.spec.classes]
        if partial and algorithm.exchange == "parameters":
            raise UnsupportedError(
                f"algorithm '{algorithm.name}' with {partial[0].name}, who knows {len(partial[0].classes)} of "
                f"{len(own.spec.classes)} classes of task '{task}'",
                "expected one label space on all clients, because it sends weights",
                f'set tasks.{task}.label-space = "shared", or choose a method that sends predictions, such as fedmd',
            )
        kinds = sorted({(info.model, info.parameters) for info in infos})
        if len(kinds) > 1 and algorithm.homogeneous:
            listed = ", ".join(f"{model} ({parameters:,} parameters)" for model, parameters in kinds)
            raise UnsupportedError(
                f"algorithm '{algorithm.name}' with models {listed} for task '{task}'",
                "expected one architecture on all clients, because it sends weights",
                f"set tasks.{task}.models to one model, or choose a method that sends predictions, such as fedmd",
            )
        if own_weights(algorithm):
            _check_names(task, own, infos)
        check_clients(algorithm, own.spec, own.model, infos)


def _check_names(task: str, own: ServerTask, infos: Collection[ClientInfo]) -> None:
    """Refuse models that the server could not build, or only from a folder that a client has named."""
    known = model_names(own.spec.modality, own.spec.output)
    for info in infos:
        if info.model not in known:
            raise UnsupportedError(
                f"model '{info.model}' of {info.name} for task '{task}'",
                "expected one that the server can build by its name, because it is sent weights of it",
                f"such as {', '.join(known)}",
            )


def _wait_for_nodes(grid: Grid, count: int, deadline: float) -> list[int]:
    end = time.monotonic() + deadline
    seen = -1
    while True:
        ids = sorted(patiently(grid.get_node_ids))
        if len(ids) >= count or time.monotonic() >= end:
            return ids
        if len(ids) != seen:
            seen = len(ids)
            log.warning("%d of %d clients are here; waiting up to %g s for the others", seen, count, deadline)
        time.sleep(0.2)


def _check(description: Description, tasks: Mapping[str, ServerTask]) -> None:
    if not description.tasks:
        raise UnsupportedError(f"client '{description.client}' without a task", f"expected one of {', '.join(tasks)}")
    # Names are written to the run's files and shown, and a stranger chose them.
    for text in (description.client, description.software, *(told.model for told in description.tasks.values())):
        if not 0 < len(text) <= LONGEST_NAME or not text.isprintable():
            found = f"a name or version of {len(text)} characters"
            raise UnsupportedError(found, f"expected 1 to {LONGEST_NAME} printable ones")
    check_software(description.software)
    for name, told in description.tasks.items():
        if name not in tasks:
            raise UnsupportedError(f"task '{name}'", f"expected one of {', '.join(tasks)}")
        _check_task(description.client, name, told, tasks[name])


def _check_task(client: str, name: str, told: TaskDescription, own: ServerTask) -> None:
    where, spec = f"client '{client}', task '{name}'", own.spec
    strange = sorted(set(told.classes) - set(spec.classes))
    if strange:
        raise MismatchError(
            f"{where}: unknown classes {tuple(strange[:5])}",
            f"expected some of {len(spec.classes)}, such as '{spec.classes[0]}'",
            "give both sides the same public pack, or the same data folder, scenario and seed",
            reason=Reason.CLASSES,
        )
    ours = schema(spec, own.proxy.digest)
    theirs = Schema(
        output=told.output,
        modality=told.modality,
        input_shape=told.input_shape,
        positions=told.positions,
        tokenizer=told.tokenizer,
        proxy_digest=told.proxy_digest,
        classes=ours.classes,  # a client knows a part of them, which was looked at above
    )
    check_schema(where, theirs, ours)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
