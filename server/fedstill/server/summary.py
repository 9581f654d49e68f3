"""A run in numbers: what each client gained and what it cost. Pure functions of config.toml and rounds.jsonl.

The command line's last table, its `--json` and the report share this one value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedstill.common.errors import ConfigError
from fedstill.common.registry import ALGORITHMS
from fedstill.server.folder import RunFolder

Record = Mapping[str, Any]
"""A line of rounds.jsonl."""

BYTES_PER_WEIGHT = 4
"""FedAvg sends float32."""

STAGES = ("final", "alone", "trained", "distilled")
"""When clients are measured; the names of measures begin with one of these."""


@dataclass(frozen=True, slots=True)
class ClientResult:
    """What one client got out of one task.

    Attributes:
        name: the client.
        model: its architecture; "" if it has not introduced itself yet.
        parameters: number of the model's weights.
        examples: number of private examples.
        classes: what its model knows.
        alone: the task's main measure of its model trained alone, or None.
        after: the same after the run (while it goes on: after the client's last private training), or None.
        gain: `after - alone`, or None.
    """

    name: str
    model: str
    parameters: int
    examples: int
    classes: tuple[str, ...]
    alone: float | None
    after: float | None
    gain: float | None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a run did for one task.

    Attributes:
        name: the task.
        measure: its main measure, such as "accuracy"; "own-…" if clients can be measured on their own data only.
        share: all values lie in 0 … 1, so that they are said in per cent.
        classes: the label space.
        clients: one each.
        alone, after, gain: means over the clients that have both values; over those that have one if none has both.
        gained: how many clients are better than alone.
        compared: how many have both values.
        teacher: the main measure of the server's model on the common test samples, or None.
        consensus: the same of the aggregated soft labels on the proxy samples, or None.
    """

    name: str
    measure: str
    share: bool
    classes: tuple[str, ...]
    clients: tuple[ClientResult, ...]
    alone: float | None
    after: float | None
    gain: float | None
    gained: int
    compared: int
    teacher: float | None
    consensus: float | None


@dataclass(frozen=True, slots=True)
class ClientTraffic:
    """Bytes on the wire of one client.

    Attributes:
        name: the client.
        rounds: in how many it was asked.
        up, down: mean bytes of a round in which it was asked.
        fedavg: bytes each way if it had sent the weights of its models instead.
    """

    name: str
    rounds: int
    up: float
    down: float
    fedavg: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers.

    Attributes:
        run, scenario: names.
        algorithm: name of the method.
        exchange: what it sends: a kind of knowledge, "nothing" or "data"; "" for a method that is not installed here.
        software: version of fedstill on the server.
        seed: of the run.
        finished: all steps are done.
        rounds, planned: rounds done, and asked for.
        seconds: of all steps.
        up, down: bytes of all steps and clients.
        round_up, round_down: mean bytes of a client in a round.
        round_fedavg: mean bytes of a client in a round, each way, if it had sent the weights of its models instead.
        abandoned: attempts below quorum.
        rejections: number by reason, over all steps and attempts.
        tasks: one each.
        traffic: one for each client.
    """

    run: str
    scenario: str
    algorithm: str
    exchange: str
    software: str
    seed: int
    finished: bool
    rounds: int
    planned: int
    seconds: float
    up: int
    down: int
    round_up: float
    round_down: float
    round_fedavg: float
    abandoned: int
    rejections: Mapping[str, int]
    tasks: tuple[TaskResult, ...]
    traffic: tuple[ClientTraffic, ...]

    @property
    def exchanges(self) -> bool:
        """Whether the method has clients and server exchange knowledge at all."""
        return self.exchange not in ("nothing", "data")

    @property
    def saving(self) -> float | None:
        """FedAvg's bytes over this run's, for the same rounds; None for a method without exchange, or with weights."""
        spent = self.round_up + self.round_down
        comparable = self.exchanges and self.exchange != "parameters" and spent and self.round_fedavg
        return 2 * self.round_fedavg / spent if comparable else None

    def table(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summary(folder: RunFolder) -> Summary:
    """The summary of a run, finished or under way.

    Raises:
        RunFolderError: if the folder is none of a run.
    """
    return summarise(folder.name, folder.config(), folder.records())


def summarise(run: str, config: Mapping[str, Any], records: Sequence[Record]) -> Summary:
    """The summary of a run from what its folder holds.

    Args:
        run: its name.
        config: the tables of config.toml.
        records: the committed steps, oldest first.
    """
    scenario = config.get("scenario", {})
    algorithm = str(scenario.get("algorithm", {}).get("name", ""))
    rounds = of_kind(records, "round")
    traffic = tuple(_traffic(name, config, rounds) for name in client_names(config, records))
    asked = sum(client.rounds for client in traffic)
    reasons = Counter(rejection["reason"] for record in records for rejection in rejections(record))
    return Summary(
        run=run,
        scenario=str(scenario.get("name", "")),
        algorithm=algorithm,
        exchange=_exchange(algorithm),
        software=str(config.get("fedstill", "")),
        seed=int(scenario.get("seed", 0)),
        finished=bool(of_kind(records, "finish")),
        rounds=len(rounds),
        planned=int(scenario.get("rounds", {}).get("count", len(rounds))),
        seconds=math.fsum(record["seconds"] for record in records),
        up=sum(record["bytes"]["up"] for record in records),
        down=sum(record["bytes"]["down"] for record in records),
        round_up=sum(client.rounds * client.up for client in traffic) / max(asked, 1),
        round_down=sum(client.rounds * client.down for client in traffic) / max(asked, 1),
        round_fedavg=sum(client.rounds * client.fedavg for client in traffic) / max(asked, 1),
        abandoned=sum(len(record["abandoned"]) for record in records),
        rejections=dict(reasons.most_common()),
        tasks=tuple(_task(name, config, records) for name in task_names(config, records)),
        traffic=traffic,
    )


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """The steps of that kind."""
    return [record for record in records if record["kind"] == kind]


def rejections(record: Record) -> list[Mapping[str, str]]:
    """Everything that did not count in a step, in all its attempts."""
    attempts = [*record["abandoned"], record]
    return [rejection for attempt in attempts for rejection in attempt["rejected"]]


def client_names(config: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    """Every client of a run, in the order of the roster."""
    asked = (name for record in records for name in (*record["cohort"], *record["bytes"]["clients"]))
    return list(dict.fromkeys([*config.get("roster", {}), *asked]))


def task_names(config: Mapping[str, Any], records: Sequence[Record]) -> list[str]:
    """Every task of a run, in the order of the scenario."""
    seen = (name for record in records for name in record["tasks"])
    return list(dict.fromkeys([*config.get("scenario", {}).get("tasks", {}), *seen]))


def task_classes(config: Mapping[str, Any], task: str) -> tuple[str, ...]:
    """The label space of a task: as the run wrote it down, else all that its clients know."""
    known = config.get("labels", {}).get(task)
    owned = (name for tasks in config.get("roster", {}).values() for name in tasks.get(task, {}).get("classes", ()))
    return tuple(known) if known else tuple(dict.fromkeys(owned))


def client_measures(records: Iterable[Record], task: str, key: str) -> dict[str, Any]:
    """The last value of a measure for each client that has it."""
    found: dict[str, Any] = {}
    for record in records:
        for client, measures in record["tasks"].get(task, {}).get("clients", {}).items():
            if measures.get(key) is not None:
                found[client] = measures[key]
    return found


def number(value: object) -> float | None:
    """A finite number, or None."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable and isinstance(value, int | float) else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are numbers, or None."""
    numbers = [value for value in values if value is not None]
    return math.fsum(numbers) / len(numbers) if numbers else None


def main_measure(records: Sequence[Record], task: str) -> str:
    """The first measure of a task on common data, else on the clients' own, else the server's; "" if there is none."""
    parts = [record["tasks"][task] for record in records if task in record["tasks"]]
    keys: list[str] = list(
        dict.fromkeys(key for part in parts for measures in part["clients"].values() for key in measures)
    )
    for own in (False, True):
        for stage in STAGES:
            for key in keys:
                name = key.removeprefix(f"{stage}.")
                if name != key and name.startswith("own-") == own and not name.startswith("class-"):
                    return name
    of_server: list[str] = [key for part in parts for key in part["server"]]
    return next((key for key in of_server if not key.startswith(("class-", "consensus."))), "")


def _exchange(algorithm: str) -> str:
    try:
        return str(ALGORITHMS.get(algorithm).exchange)
    except ConfigError:
        return ""


def _traffic(name: str, config: Mapping[str, Any], rounds: Sequence[Record]) -> ClientTraffic:
    parts = [record["bytes"]["clients"][name] for record in rounds if name in record["bytes"]["clients"]]
    tasks = config.get("roster", {}).get(name, {}).values()
    return ClientTraffic(
        name=name,
        rounds=len(parts),
        up=sum(part["up"] for part in parts) / max(len(parts), 1),
        down=sum(part["down"] for part in parts) / max(len(parts), 1),
        fedavg=BYTES_PER_WEIGHT * sum(task["parameters"] for task in tasks),
    )


def _task(name: str, config: Mapping[str, Any], records: Sequence[Record]) -> TaskResult:
    measure = main_measure(records, name)
    clients = _clients(name, measure, config, records)
    pairs = [client for client in clients if client.gain is not None]
    teacher, consensus = (_of_server(records, name, key) for key in (measure, f"consensus.{measure}"))
    values = [value for client in clients for value in (client.alone, client.after)] + [teacher, consensus]
    return TaskResult(
        name=name,
        measure=measure,
        share=all(0 <= value <= 1 for value in values if value is not None),
        classes=task_classes(config, name),
        clients=clients,
        alone=mean(client.alone for client in pairs or clients),
        after=mean(client.after for client in pairs or clients),
        gain=mean(client.gain for client in pairs),
        gained=sum(client.gain > 0 for client in pairs if client.gain is not None),
        compared=len(pairs),
        teacher=teacher,
        consensus=consensus,
    )


def _clients(task: str, measure: str, config: Mapping[str, Any], records: Sequence[Record]) -> tuple[ClientResult, ...]:
    alone = client_measures(of_kind(records, "alone"), task, f"alone.{measure}")
    after = client_measures(records, task, f"trained.{measure}")
    after |= client_measures(of_kind(records, "finish"), task, f"final.{measure}")
    return tuple(
        _client(name, roster, number(alone.get(name)), number(after.get(name)))
        for name, roster in _roster(task, config, records)
    )


def _roster(task: str, config: Mapping[str, Any], records: Sequence[Record]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    measured = {name for record in records for name in record["tasks"].get(task, {}).get("clients", {})}
    for name in client_names(config, records):
        tasks = config.get("roster", {}).get(name, {})
        if task in tasks or name in measured:
            yield name, tasks.get(task, {})


def _client(name: str, roster: Mapping[str, Any], alone: float | None, after: float | None) -> ClientResult:
    return ClientResult(
        name=name,
        model=str(roster.get("model", "")),
        parameters=int(roster.get("parameters", 0)),
        examples=int(roster.get("examples", 0)),
        classes=tuple(roster.get("classes", ())),
        alone=alone,
        after=after,
        gain=after - alone if alone is not None and after is not None else None,
    )


def _of_server(records: Sequence[Record], task: str, key: str) -> float | None:
    values = (number(record["tasks"].get(task, {}).get("server", {}).get(key)) for record in reversed(records))
    return next((value for value in values if value is not None), None)
