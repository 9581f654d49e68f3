"""A scenario describes a run: tasks, clients, method, training, teacher, rounds. One TOML file, validated once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedstill.common import check
from fedstill.common.algorithm import Algorithm, asked, check_plan
from fedstill.common.augment import check_views
from fedstill.common.codec import Codec
from fedstill.common.errors import ConfigError, nearest
from fedstill.common.learning import Training
from fedstill.common.outputs import output_kind
from fedstill.common.query import check_choice
from fedstill.common.registry import ALGORITHMS, CODECS, QUERIES, TASKS
from fedstill.common.scenario_checks import check_adaptive, check_codec, check_shared
from fedstill.common.task import Task

_TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""A task's name is a part of keys on the wire and in files."""

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


@dataclass(frozen=True, slots=True)
class ProxyPlan:
    """The public samples of a task.

    Attributes:
        samples: how many are taken from the data set, before the clients get theirs; or from `source`.
        source: another data set whose samples are the public ones, without labels; "" for the task's own.
        per_round: how many of them a round is about, chosen anew each round; 0 for all.
        choose: the query strategy that chooses them.
        shared: tasks with the same name here have the same proxy samples: the same rows if they read the same inputs,
            else pairs of the same class. "" for samples of the task's own.
    """

    samples: int = 500
    source: str = ""
    per_round: int = 0
    choose: str = "random"
    shared: str = ""

    def __post_init__(self) -> None:
        check.at_least(1, proxy_samples=self.samples)
        check.at_least(0, proxy_per_round=self.per_round)
        if self.per_round > self.samples:
            raise ConfigError(
                f"proxy.per-round={self.per_round}", f"expected at most proxy.samples={self.samples}", "lower it"
            )
        needs, told = QUERIES.get(self.choose).needs, f"proxy.choose='{self.choose}'"
        if needs and self.shared:
            raise ConfigError(
                f"{told} with proxy.shared='{self.shared}'",
                "expected 'random', because all tasks that share are asked about the same samples",
            )
        if needs and self.per_round in (0, self.samples):
            raise ConfigError(
                f"{told} with all {self.samples} samples in every round", "expected fewer", "set proxy.per-round"
            )


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """How a data set is split over the clients (partitioners of flwr-datasets).

    Attributes:
        kind: "iid", "dirichlet" (label skew), "pathological" (a few classes each), "natural" (by owner).
        alpha: of the Dirichlet distribution; the smaller, the more skewed.
        classes: classes of each client, for "pathological".
        minimum: fewest examples of a client.
    """

    kind: Literal["iid", "dirichlet", "pathological", "natural"] = "iid"
    alpha: float = 0.5
    classes: int = 2
    minimum: int = 10

    def __post_init__(self) -> None:
        check.positive(partition_alpha=self.alpha)
        check.at_least(1, partition_classes=self.classes, partition_minimum=self.minimum)


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One task of a run.

    Attributes:
        task: its kind with its options.
        models: architectures of the clients, in turn.
        teacher: architecture of the server's model; "" for the last of `models`.
        proxy: its public samples.
        partition: how its data is split over clients.
        private: how many examples the clients share among themselves; 0 for all that are left.
        holdout: share of a client's own data that it keeps aside to measure itself.
        test: at most so many samples of the data set's test part are used; 0 for all.
        label_space: "shared" (every model knows all classes) or "own" (a model knows its client's classes only).
        clients: which clients have the task, by number; () for all.
    """

    task: Task
    models: tuple[str, ...]
    teacher: str = ""
    proxy: ProxyPlan = field(default_factory=ProxyPlan)
    partition: PartitionPlan = field(default_factory=PartitionPlan)
    private: int = 0
    holdout: float = 0.2
    test: int = 2000
    label_space: Literal["shared", "own"] = "shared"
    clients: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("models = []", "expected at least one architecture", "see 'fedstill list models'")
        check.at_least(0, private=self.private, test=self.test)
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout={self.holdout}", "expected 0 <= value < 1")

    def group(self, name: str) -> str:
        """Whose proxy samples the task has, if it is called so: the name that tasks share, or its own."""
        return f"shared {self.proxy.shared}" if self.proxy.shared else name

    def model(self, client: int) -> str:
        """The architecture of that client."""
        return self.models[client % len(self.models)]

    @property
    def server_model(self) -> str:
        """The architecture of the server's model."""
        return self.teacher or self.models[-1]


@dataclass(frozen=True, slots=True)
class Clients:
    """Who takes part.

    Attributes:
        count: number of clients.
        cohort: share of them that works in a round, sampled anew each round.
        quorum: share of a cohort that must answer for the round to count.
    """

    count: int = 8
    cohort: float = 1.0
    quorum: float = 0.5

    def __post_init__(self) -> None:
        check.at_least(1, clients_count=self.count)
        check.fraction(clients_cohort=self.cohort, clients_quorum=self.quorum)


@dataclass(frozen=True, slots=True)
class Rounds:
    """When a round ends.

    Attributes:
        count: rounds of the run.
        deadline: seconds from sending to the last answer that still counts.
        attempts: how often a round below quorum is tried before the run gives up.
        backoff: seconds before a round below quorum is tried again; doubled each time.
        largest_message: bytes; a larger contribution is refused before it is read.
    """

    count: int = 10
    deadline: float = 600.0
    attempts: int = 3
    backoff: float = 1.0
    largest_message: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        check.at_least(1, rounds_count=self.count, rounds_attempts=self.attempts)
        check.at_least(1, rounds_largest_message=self.largest_message)
        check.positive(rounds_deadline=self.deadline)
        check.at_least(0, rounds_backoff=self.backoff)


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plug-in that only one side knows, by name, with its options as they stand in the file."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole run.

    Attributes:
        tasks: by name; a client may have several.
        algorithm: the method.
        name, description: for people.
        seed: of everything.
        alone: measure each client's model trained alone for the same number of steps, once at the start.
        codec: how arrays are packed for the wire.
        clients, rounds, training: see there.
        teacher: the server's part in distillation.
    """

    tasks: Mapping[str, TaskPlan]
    algorithm: Algorithm
    name: str = "unnamed"
    description: str = ""
    seed: int = 1
    alone: bool = True
    codec: Codec = field(default_factory=CODECS.get("raw"))
    clients: Clients = field(default_factory=Clients)
    rounds: Rounds = field(default_factory=Rounds)
    training: Training = field(default_factory=Training)
    teacher: Plugin = field(default_factory=lambda: Plugin("consensus"))

    def __post_init__(self) -> None:
        check.at_least(0, seed=self.seed)
        if not self.tasks:
            raise ConfigError("tasks = {}", "expected at least one task", "add a table [tasks.NAME]")
        for name, plan in self.tasks.items():
            if not _TASK_NAME.fullmatch(name):
                raise ConfigError(f"task name '{name}'", "expected letters, digits, '-' and '_'")
            if plan.task.output not in self.algorithm.outputs:
                raise ConfigError(
                    f"algorithm '{self.algorithm.name}' with task '{name}' of output kind '{plan.task.output}'",
                    f"expected one of {', '.join(sorted(self.algorithm.outputs))}",
                    "choose another algorithm",
                )
            if asked(self.algorithm)[0] == "logits" and output_kind(plan.task.output).has_positions:
                raise ConfigError(
                    f"algorithm '{self.algorithm.name}' with raw scores and task '{name}' of output kind "
                    f"'{plan.task.output}'",
                    "expected probabilities, of which padding has none",
                    'set algorithm.scores = "probabilities"',
                )
            check_choice(name, plan.proxy.choose, output=plan.task.output, exchange=self.algorithm.exchange)
            if self.training.consistency:
                check_views(name, output=plan.task.output, modality=plan.task.modality)
            for client in plan.clients:
                if not 0 <= client < self.clients.count:
                    raise ConfigError(f"tasks.{name}.clients holds {client}", f"expected 0 to {self.clients.count - 1}")
            if len(set(plan.clients)) != len(plan.clients):
                raise ConfigError(f"tasks.{name}.clients = {list(plan.clients)}", "expected every client once")
        check_plan(self.algorithm, teacher=self.teacher.name, rounds=self.rounds.count)
        check_shared(self.tasks)
        check_adaptive(self)
        check_codec(self)
        if all(plan.clients for plan in self.tasks.values()):
            idle = set(range(self.clients.count)).difference(*(plan.clients for plan in self.tasks.values()))
            if idle:
                raise ConfigError(
                    f"client {min(idle)} without a task", "expected one for every client", "see tasks.NAME.clients"
                )


_SECTIONS: dict[str, type] = {"clients": Clients, "rounds": Rounds, "training": Training}
_SCALARS: dict[str, type] = {"name": str, "description": str, "seed": int, "alone": bool}


def parse(table: Mapping[str, Any]) -> Scenario:
    """A scenario from the tables of a TOML file.

    Raises:
        ConfigError: for an unknown key (naming the nearest), a wrong type or a value outside its range.
    """
    known = {*_SCALARS, *_SECTIONS, "tasks", "algorithm", "teacher", "codec"}
    _refuse_unknown(table, known, "")
    parts: dict[str, Any] = {key: _typed(kind, table[key], key) for key, kind in _SCALARS.items() if key in table}
    parts |= {key: _typed(kind, _table(table, key), key) for key, kind in _SECTIONS.items() if key in table}
    if "teacher" in table:
        options = dict(_table(table, "teacher"))
        parts["teacher"] = Plugin(str(options.pop("kind", "consensus")), options)
    if "codec" in table:
        parts["codec"] = codec_from(table["codec"])
    return Scenario(
        tasks={name: _task_plan(name, _table(table["tasks"], name)) for name in _table(table, "tasks")},
        algorithm=_plugin(ALGORITHMS, _table(table, "algorithm"), "algorithm", key="name"),
        **parts,
    )


def codec_from(value: Any) -> Codec:
    """A codec from its name, or from a table of its name and options.

    Raises:
        ConfigError: for an unknown name or key, a wrong type or a value outside its range.
    """
    table = {"name": value} if isinstance(value, str) else _table({"codec": value}, "codec")
    codec: Codec = _plugin(CODECS, table, "codec", key="name")
    return codec


def codec_table(codec: Codec) -> str | dict[str, Any]:
    """The inverse of `codec_from`: the name alone where every option is the default."""
    told: dict[str, Any] = options(codec)
    return codec.name if told == options(type(codec)()) else {"name": codec.name, **told}


def build(kind: type, options: Mapping[str, Any], where: str) -> Any:
    """A plug-in's dataclass from the options of a table.

    Raises:
        ConfigError: for an unknown key, a wrong type or a value outside its range.
    """
    return _typed(kind, options, where)


def _task_plan(name: str, table: Mapping[str, Any]) -> TaskPlan:
    where = f"tasks.{name}"
    own = {_kebab(f.name): f for f in fields(TaskPlan) if f.name != "task"}
    rest = {key: value for key, value in table.items() if key not in own}
    task = _plugin(TASKS, rest, where, key="kind", also=own)
    parts: dict[str, Any] = {}
    for key in own.keys() & table.keys():
        value = table[key]
        if key in ("proxy", "partition"):
            parts[key] = _typed({"proxy": ProxyPlan, "partition": PartitionPlan}[key], value, f"{where}.{key}")
        else:
            parts[key.replace("-", "_")] = _typed(_PLAN_TYPES[key], _listed(value, _PLAN_TYPES[key]), f"{where}.{key}")
    if "models" not in parts:
        raise ConfigError(f"{where} without 'models'", 'expected models = ["…"]', "see 'fedstill list models'")
    return TaskPlan(task=task, **parts)


_PLAN_TYPES: dict[str, Any] = {
    "models": tuple[str, ...],
    "teacher": str,
    "private": int,
    "holdout": float,
    "test": int,
    "label-space": Literal["shared", "own"],
    "clients": tuple[int, ...],
}


def _plugin(registry: Any, table: Mapping[str, Any], where: str, *, key: str, also: Mapping[str, Any] = {}) -> Any:
    options = dict(table)
    if key not in options:
        raise ConfigError(
            f"{where} without '{key}'", f"expected the name of {_article(registry.kind)}", nearest("", registry.names())
        )
    kind = registry.get(str(options.pop(key)))
    _refuse_unknown(options, {*option_names(kind), *also}, where, also_known={key})
    return _typed(kind, options, where)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} = {value!r}", f"expected a table [{key}]")
    return value


def _listed(value: Any, kind: Any) -> Any:
    """run_config and --set know no lists: "a,b" stands for ["a", "b"]."""
    if isinstance(value, str) and str(kind).startswith("tuple"):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, int) and not isinstance(value, bool) and kind == tuple[int, ...]:
        return [value]
    return value


def option_names(kind: type) -> list[str]:
    """The keys of a dataclass's table."""
    return [_kebab(f.name) for f in fields(kind) if f.init] if is_dataclass(kind) else []


def _refuse_unknown(table: Mapping[str, Any], known: set[str], where: str, *, also_known: Collection[str] = ()) -> None:
    for key in table:
        if key not in known:
            path = f"{where}.{key}" if where else key
            raise ConfigError(
                f"unknown key '{path}'", "expected a key of this table", nearest(key, {*known, *also_known})
            )


def _typed(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} = {value!r}", f"expected a table [{where}]")
        _refuse_unknown(value, set(option_names(kind)), where)
        value = {key.replace("-", "_"): item for key, item in value.items()}
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([where, *(_kebab(str(part)) for part in first["loc"])])
        raise ConfigError(f"{path} = {first.get('input')!r}", first["msg"].lower()) from None


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind) if is_dataclass(kind) else TypeAdapter(kind, config=_STRICT)


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def dump(scenario: Scenario) -> dict[str, Any]:
    """The tables of a scenario, with every default written out: `parse(dump(s))` is `s` again."""
    table: dict[str, Any] = {key: getattr(scenario, key) for key in _SCALARS}
    table |= {key: options(getattr(scenario, key)) for key in _SECTIONS}
    table["algorithm"] = {"name": scenario.algorithm.name, **options(scenario.algorithm)}
    table["codec"] = codec_table(scenario.codec)
    table["teacher"] = {"kind": scenario.teacher.name, **scenario.teacher.options}
    table["tasks"] = {}
    for name, plan in scenario.tasks.items():
        own = options(plan)
        own.pop("task")
        table["tasks"][name] = {"kind": plan.task.name, **options(plan.task), **own}
    return table


def options(value: Any) -> dict[str, Any]:
    """Fields of a dataclass as TOML values; None is left out, for TOML has none."""
    found: dict[str, Any] = {}
    for part in fields(value) if is_dataclass(value) else ():
        item = getattr(value, part.name)
        if is_dataclass(item):
            found[_kebab(part.name)] = options(item)
        elif isinstance(item, tuple):
            found[_kebab(part.name)] = list(item)
        elif item is not None:
            found[_kebab(part.name)] = item
    return found


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML text of tables."""
    import tomli_w

    return tomli_w.dumps(table)


def single_task(
    task: Task | TaskPlan,
    model: str = "",
    *,
    clients: int | Clients,
    seed: int = 1,
    algorithm: Algorithm | None = None,
    **others: Any,
) -> Scenario:
    """A scenario of one task, made in Python: what the library's users get who write no TOML.

    Args:
        task: what all clients learn; a `TaskPlan` where the proxy set or the partition matters.
        model: architecture of the students; "" for the plan's own.
        clients: how many clients there are, or `Clients` where cohort or quorum matter.
        seed: of everything; both sides need the same.
        algorithm: the method; None for `fedstill`. Only the server needs it.
        others: further attributes of `Scenario`.
    """
    plan = task if isinstance(task, TaskPlan) else TaskPlan(task=task, models=(model,))
    return Scenario(
        tasks={plan.task.name: replace(plan, models=(model,)) if model else plan},
        algorithm=algorithm or ALGORITHMS.get("fedstill")(),
        seed=seed,
        clients=Clients(count=clients) if isinstance(clients, int) else clients,
        **{"name": plan.task.name, **others},
    )
