"""Every algorithm that is discovered keeps the protocol, for every kind of output that it declares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import FrozenInstanceError, dataclass, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedstill.common import records
from fedstill.common.algorithm import EVERY_OUTPUT, Algorithm, asked, one_round
from fedstill.common.errors import ConfigError, KnowledgeError, Reason
from fedstill.common.knowledge import KNOWLEDGE, Contribution, Knowledge, Personal, SoftLabels
from fedstill.common.labels import Classes
from fedstill.common.messages import Answer, Method, Order, TaskAnswer, TaskOrder
from fedstill.common.models import build_model
from fedstill.common.outputs import OUTPUTS
from fedstill.common.registry import ALGORITHMS, CODECS, first_line
from fedstill.common.scenario import Scenario, codec_from
from fedstill.common.seeding import derive
from fedstill.common.sides import Client, ClientInfo, Server
from fedstill.common.task import Examples

Small = Callable[..., Scenario]
Play = Callable[..., Any]

METHODS: dict[str, type[Algorithm]] = ALGORITHMS.all()
PAIRS = [(name, output) for name, method in METHODS.items() for output in sorted(method.outputs)]
EXCHANGING = [pair for pair in PAIRS if METHODS[pair[0]].exchange in KNOWLEDGE]
PREDICTING = [pair for pair in PAIRS if METHODS[pair[0]].exchange == "soft-labels" and pair[1] == "categorical"]

MODEL = "mlp-small"


@dataclass
class Played:
    """What came of driving a method by hand.

    Attributes:
        told: what went back to the clients after each round; of personal knowledge the common part.
        own: what went back to one client alone, after each round.
        answers: of the last round.
        models: everybody's weights in the end.
    """

    told: list[Knowledge | None]
    own: list[Mapping[str, Knowledge]]
    answers: list[Contribution]
    models: dict[str, Mapping[str, Tensor]]


def drive(
    name: str,
    data: Any,
    *,
    seed: int = 1,
    clients: int = 3,
    rounds: int = 2,
    dropped: Collection[tuple[int, int]] = (),
    classes: Mapping[int, Classes] = {},
) -> Played:
    """Two rounds of a method with its four functions, as the engine calls them.

    Args:
        dropped: (round, client) of answers that do not arrive.
        classes: what a client's model knows, if not everything.
    """
    method = METHODS[name]()
    proxy = data.proxy
    private = {number: data.examples(18 + 3 * number, f"client-{number}") for number in range(clients)}
    specs = {number: data.spec.over(classes.get(number, data.spec.classes)) for number in range(clients)}
    for number, known in classes.items():
        private[number] = _only(private[number], data.spec.classes, known)
    models = {number: build_model(data.model, specs[number], seed=derive(seed, "student", number)) for number in specs}
    infos = tuple(
        ClientInfo(f"client-{number}", data.model, 1, len(private[number]), specs[number].classes) for number in specs
    )
    common: dict[str, Any] = {
        "model_name": data.model,
        "proxy": proxy,
        "samples": np.arange(24),
        "training": data.training,
        "memory": {},
    }
    server = Server(
        spec=data.spec,
        model=build_model(data.model, data.spec, seed=derive(seed, "server")),
        seed=derive(seed, 0),
        round=0,
        clients=infos,
        rounds=rounds,
        pooled=lambda: _joined(list(private.values())),
        **common,
    )
    sides = {
        number: Client(
            spec=specs[number],
            model=models[number],
            seed=0,
            round=0,
            name=f"client-{number}",
            private=private[number],
            **{**common, "memory": {}},
        )
        for number in specs
    }
    first = method.start(server)
    told: list[Knowledge | None] = [first.common if isinstance(first, Personal) else first]
    own: list[Mapping[str, Knowledge]] = [dict(first.own) if isinstance(first, Personal) else {}]
    answers: list[Contribution] = []
    for step in range(1, rounds + 1):
        answers = []
        for number, side in sides.items():
            side.round, side.seed = step, derive(seed, "client", number, step)
            if (received := own[-1].get(side.name, told[-1])) is not None:
                method.absorb(side, received)
            knowledge = method.local(side)
            if knowledge is not None and (step, number) not in dropped:
                answers.append(Contribution(side.name, len(side.private), knowledge))
        server.round, server.seed = step, derive(seed, "server", step)
        merged = method.merge(server, answers)
        told.append(merged.common if isinstance(merged, Personal) else merged)
        own.append(dict(merged.own) if isinstance(merged, Personal) else {})
    weights: dict[str, Mapping[str, Tensor]] = {side.name: side.model.state_dict() for side in sides.values()}
    return Played(told, own, answers, {**weights, "server": server.model.state_dict()})


def _only(examples: Examples, space: Classes, known: Classes) -> Examples:
    place = torch.tensor([known.index(name) if name in known else -1 for name in space])
    kept = torch.nonzero(place[examples.targets] >= 0).flatten()
    return Examples(examples.inputs[kept], place[examples.targets[kept]])


def _joined(parts: list[Examples]) -> Examples:
    return Examples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))


def same_knowledge(left: Knowledge | None, right: Knowledge | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.header() == right.header() and all(
        np.array_equal(array, right.arrays()[name]) for name, array in left.arrays().items()
    )


def same_own(left: Mapping[str, Knowledge], right: Mapping[str, Knowledge]) -> bool:
    return left.keys() == right.keys() and all(same_knowledge(one, right[name]) for name, one in left.items())


def everything(told: Knowledge | Personal | None) -> dict[str, Knowledge]:
    """What went back by client; "" is for what all have in common."""
    if not isinstance(told, Personal):
        return {} if told is None else {"": told}
    return everything(told.common) | dict(told.own)


def same(left: Played, right: Played) -> bool:
    told = all(map(same_knowledge, left.told, right.told)) and all(map(same_own, left.own, right.own))
    return told and all(
        torch.equal(value, right.models[who][name])
        for who, model in left.models.items()
        for name, value in model.items()
    )


@pytest.mark.parametrize("name", METHODS)
def test_what_it_says_of_itself(name: str) -> None:
    method = METHODS[name]

    assert method.name == name
    assert method.exchange in (*KNOWLEDGE, "nothing", "data")
    assert method.outputs
    assert method.outputs <= EVERY_OUTPUT == set(OUTPUTS.names())
    assert isinstance(method.homogeneous, bool)
    assert method.paper == "" or "https://" in method.paper
    assert first_line(method)
    assert METHODS[name]() == METHODS[name]()
    frozen: Any = method()
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        frozen.name = "another"
    assert is_dataclass(method)


@pytest.mark.parametrize(("name", "output"), PAIRS)
def test_the_same_seed_gives_the_same(name: str, output: str, synthetic: Any) -> None:
    first, second, other = (drive(name, synthetic(output), seed=seed) for seed in (1, 1, 2))

    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize(("name", "output"), PAIRS)
def test_something_is_learnt(name: str, output: str, synthetic: Any) -> None:
    """After some rounds, a client's model (the server's, where clients have no part) fits the private data."""
    data = synthetic(output)
    who = "server" if METHODS[name].exchange == "data" else "client-0"
    seen = data.examples(18, "client-0")
    model = build_model(data.model, data.spec, seed=0)

    def loss() -> float:
        with torch.no_grad():
            inputs = data.spec.kind.forced(seen.inputs, seen.targets)
            return float(data.spec.kind.loss(model.eval()(inputs), seen.targets))

    before = loss()
    model.load_state_dict(dict(drive(name, data, rounds=10).models[who]))
    assert loss() < 0.5 * before


@pytest.mark.parametrize(("name", "output"), PAIRS)
def test_kinds_of_knowledge_are_as_declared(name: str, output: str, synthetic: Any) -> None:
    method = METHODS[name]

    played = drive(name, synthetic(output))

    if method.exchange in ("nothing", "data"):
        assert played.answers == []
        assert played.told == [None, None, None]
        return
    assert {answer.knowledge.kind for answer in played.answers} == {method.exchange}
    for told, own in zip(played.told[1:], played.own[1:], strict=True):
        assert {one.kind for one in everything(Personal(told, own)).values()} == {method.exchange}
    for answer in played.answers:
        if isinstance(answer.knowledge, SoftLabels):
            assert (answer.knowledge.form, answer.knowledge.temperature) == asked(method())
            assert answer.knowledge.output == output


@pytest.mark.parametrize(("name", "output"), PAIRS)
def test_one_client_is_enough(name: str, output: str, synthetic: Any) -> None:
    played = drive(name, synthetic(output), clients=1)

    assert len(played.answers) == (1 if METHODS[name].exchange in KNOWLEDGE else 0)


@pytest.mark.parametrize(("name", "output"), EXCHANGING)
def test_a_dropped_answer_counts_nothing(name: str, output: str, synthetic: Any) -> None:
    whole = drive(name, synthetic(output))

    dropped = drive(name, synthetic(output), dropped={(2, 1)})

    assert [answer.client for answer in dropped.answers] == ["client-0", "client-2"]
    whole_told, dropped_told = (
        [everything(Personal(told, own)) for told, own in zip(one.told, one.own, strict=True)]
        for one in (whole, dropped)
    )
    assert same_own(whole_told[1], dropped_told[1])
    # Labels of one bit can be the same from everybody: then one answer less is none less.
    agreed = all(same_knowledge(answer.knowledge, whole.answers[0].knowledge) for answer in whole.answers)
    assert same_own(whole_told[2], dropped_told[2]) == agreed


@pytest.mark.parametrize(("name", "output"), EXCHANGING)
def test_the_order_of_answers_counts_little(name: str, output: str, synthetic: Any) -> None:
    """The engine sorts them: what is asked here is that no client is preferred by its place."""
    data = synthetic(output)
    answers = drive(name, data).answers

    def merged(contributions: list[Contribution]) -> dict[str, Knowledge]:
        server = Server(
            spec=data.spec,
            model_name=data.model,
            model=build_model(data.model, data.spec, seed=5),
            proxy=data.proxy,
            samples=np.arange(24),
            training=data.training,
            seed=3,
            round=2,
        )
        return everything(METHODS[name]().merge(server, contributions))

    forward, backward = merged(answers), merged(answers[::-1])

    assert forward
    assert forward.keys() == backward.keys()
    for who, one in forward.items():
        for key, array in one.arrays().items():
            other = backward[who].arrays()[key]
            np.testing.assert_allclose(array.astype(float), other.astype(float), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "output"), PREDICTING)
def test_classes_that_some_clients_lack(name: str, output: str, synthetic: Any) -> None:
    known = {0: ("a", "b"), 1: ("b", "c"), 2: ("c",)}

    played = drive(name, synthetic(output), classes=known)

    told = played.told[-1]
    assert isinstance(told, SoftLabels)
    assert told.classes == ("a", "b", "c")
    assert np.isfinite(told.values).all()
    alone = drive(name, synthetic(output), clients=1, classes={0: ("b", "c")}).told[-1]
    assert isinstance(alone, SoftLabels)
    assert alone.classes == ("b", "c")


@pytest.mark.parametrize(("name", "output"), EXCHANGING)
def test_a_diverged_model_does_not_speak(name: str, output: str, synthetic: Any) -> None:
    data = synthetic(output)
    model = build_model(data.model, data.spec, seed=0)
    for value in model.state_dict().values():
        value.fill_(float("nan"))
    side = Client(
        spec=data.spec,
        model_name=data.model,
        model=model,
        proxy=data.proxy,
        samples=np.arange(24),
        training=data.training,
        seed=1,
        round=1,
        name="client-0",
        private=data.examples(20, "client-0"),
    )

    with pytest.raises(KnowledgeError) as caught:
        METHODS[name]().local(side)
    assert caught.value.reason is Reason.NOT_FINITE


@pytest.mark.parametrize("codec", CODECS.names())
@pytest.mark.parametrize(("name", "output"), EXCHANGING)
def test_knowledge_survives_the_wire(name: str, output: str, codec: str, synthetic: Any) -> None:
    packer = codec_from(codec)
    exchange = METHODS[name].exchange
    if getattr(packer, "only_distributions", False) and (
        exchange != "soft-labels" or not OUTPUTS.get(output).has_classes
    ):
        return
    data = synthetic(output)
    played = drive(name, data)
    method = Method(name, {}, data.training, packer)

    told = everything(Personal(played.told[-1], played.own[-1]))
    assert told
    for knowledge in [*told.values(), *(answer.knowledge for answer in played.answers)]:
        task = TaskOrder(data.proxy.digest, np.arange(24), knowledge)
        order = Order("run", 1, 2, 1, 1, 0, method, {"synthetic": task})
        heard = records.read_order(records.write_order(order)).tasks["synthetic"].knowledge
        answer = Answer("client-0", "run", 1, 1, 0, {"synthetic": TaskAnswer(data.proxy.digest, 5, knowledge)})
        back = records.read_answer(records.write_answer(answer, order), order).tasks["synthetic"].knowledge
        for other in (heard, back):
            assert other is not None
            assert other.header() == knowledge.header()
            for key, array in knowledge.arrays().items():
                sent = array if key == "samples" else packer.decode(packer.encode({key: array}))[key]
                np.testing.assert_array_equal(other.arrays()[key], sent)
                assert other.arrays()[key].dtype == array.dtype


@pytest.mark.parametrize("name", METHODS)
def test_from_end_to_end(name: str, play_small: Play) -> None:
    rounds = 1 if one_round(METHODS[name]) else 2
    changes = {"algorithm": {"name": name}, "tasks.wine.models": [MODEL], "rounds.count": rounds}

    first, second, other = (
        play_small({**changes, "seed": seed}, name=folder) for folder, seed in (("a", 1), ("b", 1), ("c", 2))
    )

    assert [record["rejected"] for record in first.records] == [[]] * (rounds + 2)
    assert [record["tasks"] for record in first.records] == [record["tasks"] for record in second.records]
    assert [record["tasks"] for record in first.records] != [record["tasks"] for record in other.records]


@pytest.mark.parametrize("name", METHODS)
def test_what_it_cannot_do_is_refused_by_the_scenario(name: str, small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    for output in EVERY_OUTPUT:
        monkeypatch.setattr("fedstill.common.tasks.tabular.TabularTask.output", output)
        if output in METHODS[name].outputs:
            small({"algorithm": {"name": name}, "rounds.count": 1})
        else:
            with pytest.raises(ConfigError, match=f"algorithm '{name}' with task 'wine' of output kind '{output}'"):
                small({"algorithm": {"name": name}, "rounds.count": 1})
