"""Both halves of every method on a model of a few numbers, and what the sides do for them."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, tensor

from fedstill.common.algorithms.central import Central
from fedstill.common.algorithms.dsfl import DSFL
from fedstill.common.algorithms.fedavg import FedAvg
from fedstill.common.algorithms.feddf import FedDF
from fedstill.common.algorithms.fedmd import FedMD
from fedstill.common.algorithms.fedstill import Fedstill
from fedstill.common.algorithms.local import Local
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, KnowledgeError, UnsupportedError
from fedstill.common.knowledge import KNOWLEDGE, Contribution, Knowledge, Parameters, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.outputs import OUTPUTS
from fedstill.common.registry import ALGORITHMS
from fedstill.common.scenario import build
from fedstill.common.sides import Client, Server, parameters_of, soft_labels_of, taught
from fedstill.common.task import Examples, TaskSpec

LN3 = math.log(3)
TRAINING = Training(epochs=3, batch_size=4, learning_rate=0.05)
PROXY = tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
SAMPLES = np.arange(3)


ZERO_IS_GOOD = {("fedstill", "doubt"), ("kt-pfl", "penalty"), ("selective-fd", "quantile")}
"""Options for which 0 says "without", beside those where it is the default."""


def linear(weight: Any) -> nn.Linear:
    """z = W x."""
    wanted = tensor(weight, dtype=torch.float32)
    model = nn.Linear(wanted.shape[1], wanted.shape[0], bias=False)
    with torch.no_grad():
        model.weight.copy_(wanted)
    return model


def spec(*classes: str) -> TaskSpec:
    return TaskSpec("t", "categorical", "tabular", classes or ("a", "b"), (2,))


def common(weight: Any) -> dict[str, Any]:
    return {
        "spec": spec(),
        "model_name": "linear",
        "model": linear(weight),
        "proxy": ProxySet(PROXY),
        "samples": SAMPLES,
        "training": TRAINING,
        "seed": 1,
        "round": 1,
    }


def server(weight: Any = ((0.0, 0.0), (0.0, 0.0)), **others: Any) -> Server:
    return Server(**common(weight) | others)


def client(weight: Any = ((0.0, 0.0), (0.0, 0.0)), **others: Any) -> Client:
    data = Examples(tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([0, 1]))
    return Client(**common(weight) | {"name": "client-0", "private": data} | others)


def told(values: Any, classes: tuple[str, ...] = ("a", "b"), samples: Any = SAMPLES, **others: Any) -> SoftLabels:
    return SoftLabels("categorical", classes, np.asarray(samples), np.array(values, np.float32), **others)


def contributions(*knowledge: Knowledge, examples: tuple[int, ...] = (1, 3)) -> list[Contribution]:
    return [Contribution(f"client-{n}", examples[n % len(examples)], one) for n, one in enumerate(knowledge)]


def weights(side: Client | Server) -> Tensor:
    weight: Tensor = side.model.state_dict()["weight"]
    return weight


class TestFedAvg:
    method = FedAvg()

    def test_merge_weights_by_examples(self) -> None:
        side = server()
        models = [parameters_of(client(w).parameters()) for w in (((0, 0), (0, 0)), ((4, 8), (0, -4)))]
        mean = self.method.merge(side, contributions(*models, examples=(1, 3)))
        # (1 · 0 + 3 · 4) / 4 = 3
        assert mean.weights["weight"].tolist() == [[3, 6], [0, -3]]
        assert weights(side).tolist() == [[3, 6], [0, -3]]

    def test_start_absorb_local(self) -> None:
        first = self.method.start(server(((1, 2), (3, 4))))
        student = client()
        self.method.absorb(student, first)
        assert weights(student).tolist() == [[1, 2], [3, 4]]
        answer = self.method.local(student)
        assert answer.weights["weight"].tolist() == weights(student).tolist() != [[1, 2], [3, 4]]
        assert answer.model == "linear"

    def test_another_architecture_is_refused(self) -> None:
        with pytest.raises(UnsupportedError, match="weights of 'other' in a model 'linear'"):
            self.method.absorb(client(), Parameters("other", {"weight": np.zeros((2, 2), np.float32)}))
        with pytest.raises(UnsupportedError, match="expected one architecture"):
            self.method.absorb(client(), Parameters("linear", {"weight": np.zeros((3, 2), np.float32)}))
        with pytest.raises(KnowledgeError, match="expected Parameters"):
            self.method.absorb(client(), told(np.full((3, 2), 0.5)))


class TestFedDF:
    def test_merge_moves_the_average_to_the_ensemble(self) -> None:
        # The ensemble averages logits by client, the weights go by examples: 1 to 9 here, so that they differ.
        one, two = ((4, 0), (0, 4)), ((0, 4), (4, 0))
        models = [client(w).parameters() for w in (one, two)]
        ensemble = torch.softmax((PROXY @ tensor(one).float().T + PROXY @ tensor(two).float().T) / 2, -1)

        def distance(weight: Tensor) -> float:
            return float(nn.functional.kl_div(torch.log_softmax(PROXY @ weight.T, -1), ensemble, reduction="batchmean"))

        side = server(training=Training(batch_size=4, learning_rate=0.1))
        before = FedAvg().merge(server(), contributions(*models, examples=(1, 9)))
        after = FedDF(distil_epochs=40).merge(side, contributions(*models, examples=(1, 9)))
        start = distance(torch.from_numpy(before.weights["weight"]))
        assert start > 0.5
        assert distance(torch.from_numpy(after.weights["weight"])) < 0.1 * start
        assert weights(side).tolist() == after.weights["weight"].tolist()

    def test_one_client_is_its_own_ensemble(self) -> None:
        # The average is the ensemble: its divergence is 0 from the start, and only Adam's rounding moves it.
        only = client(((1, -1), (2, 0))).parameters()
        merged = FedDF(distil_epochs=1).merge(server(), contributions(only, examples=(5,)))
        logits = PROXY @ torch.from_numpy(merged.weights["weight"]).T
        torch.testing.assert_close(logits.diff(), torch.tensor([[1.0], [1.0], [2.0]]), rtol=0, atol=0.25)


class TestFedMD:
    def test_merge_gives_everybody_the_same_weight(self) -> None:
        answers = contributions(told([[1, 0]] * 3), told([[0.5, 0.5]] * 3), examples=(1, 99))
        np.testing.assert_allclose(FedMD().merge(server(), answers).values, [[0.75, 0.25]] * 3)

    def test_merge_of_logits(self) -> None:
        answers = contributions(told([[4, 0]] * 3, form="logits"), told([[0, 2]] * 3, form="logits"))
        mean = FedMD(scores="logits").merge(server(), answers)
        assert mean.form == "logits"
        np.testing.assert_allclose(mean.values, [[2, 1]] * 3)

    def test_the_answer_is_softened(self) -> None:
        # Weights that make logits (2 ln 3, 0): at T = 2 they soften to (3/4, 1/4). Nothing private, so nothing moves.
        student = client(
            ((2 * LN3, 2 * LN3), (0, 0)), private=Examples(torch.zeros(0, 2), tensor([], dtype=torch.int64))
        )
        answer = FedMD(temperature=2.0).local(student)
        np.testing.assert_allclose(answer.values[:2], [[0.75, 0.25]] * 2, rtol=1e-6)
        assert (answer.temperature, answer.form, answer.classes) == (2.0, "probabilities", ("a", "b"))
        scores = FedMD(scores="logits").local(student)
        np.testing.assert_allclose(scores.values[0], [2 * LN3, 0], rtol=1e-6)

    @pytest.mark.parametrize("form", ["probabilities", "logits"])
    def test_absorb_moves_the_student_to_the_consensus(self, form: Any) -> None:
        consensus = told([[1, 0], [0, 1], [0.5, 0.5]], form=form)
        student = client(training=Training(batch_size=4, learning_rate=0.1))
        before = student.distil(consensus, epochs=1)
        FedMD(digest_epochs=30).absorb(student, consensus)
        assert student.distil(consensus, epochs=1) < before / 2

    def test_nothing_at_the_start(self) -> None:
        for method in (FedMD(), DSFL(), Fedstill()):
            start: Any = method.start
            assert start(server()) is None


class TestDSFL:
    def test_merge_sharpens_the_mean(self) -> None:
        # Mean (3/4, 1/4); softmax(mean / 0.1) = (sigmoid(5), sigmoid(−5))
        answers = contributions(told([[0.9, 0.1]] * 3), told([[0.6, 0.4]] * 3))
        hard = DSFL().merge(server(), answers)
        np.testing.assert_allclose(hard.values, [[1 / (1 + math.exp(-5)), 1 / (1 + math.exp(5))]] * 3, rtol=1e-5)

    def test_the_temperature_is_that_of_the_aggregate_only(self) -> None:
        student = client(((LN3, LN3), (0, 0)), private=Examples(torch.zeros(0, 2), tensor([], dtype=torch.int64)))
        answer = DSFL(temperature=0.5).local(student)
        np.testing.assert_allclose(answer.values[0], [0.75, 0.25], rtol=1e-6)
        assert answer.temperature == 1.0


class TestFedstill:
    def test_merge_hardens_the_mean_and_keeps_the_shares(self) -> None:
        # Means 3/4, 1/2, 1/4: symmetric, so b = 1, and at T = 1/2 odds of 3, 1, 1/3 become 9, 1, 1/9.
        answers = contributions(told([[0.9, 0.1], [0.5, 0.5], [0.4, 0.6]]), told([[0.6, 0.4], [0.5, 0.5], [0.1, 0.9]]))
        hard = Fedstill(temperature=0.5).merge(server(), answers)
        np.testing.assert_allclose(hard.values, [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]], rtol=1e-5)

    def test_the_temperature_is_that_of_the_aggregate_only(self) -> None:
        student = client(((LN3, LN3), (0, 0)), private=Examples(torch.zeros(0, 2), tensor([], dtype=torch.int64)))
        answer = Fedstill(temperature=0.5).local(student)
        np.testing.assert_allclose(answer.values, torch.softmax(student.predict(PROXY), -1).numpy(), rtol=1e-6)
        assert answer.temperature == 1.0

    def test_the_mean_is_over_all_rounds_and_counts_every_answer(self) -> None:
        # Two answers of 3/4, then one of 0: (2 · 3/4 + 0) / 3 = 1/2. Only the sample that both rounds are about.
        method, side = Fedstill(temperature=1.0), server(rounds=3)
        np.testing.assert_allclose(
            method.merge(side, contributions(told([[0.75, 0.25]] * 3), told([[0.75, 0.25]] * 3))).values[2],
            [0.75, 0.25],
        )
        later = method.merge(side, contributions(told([[0, 1]], samples=np.array([1]))))
        assert later.samples.tolist() == [1]
        np.testing.assert_allclose(later.values, [[0.5, 0.5]], rtol=1e-6)
        # After the last round all that is remembered is told, whatever that round was about.
        last = method.merge(replace(side, round=3), contributions(told([[0, 1]], samples=np.array([1]))))
        assert last.samples.tolist() == SAMPLES.tolist()
        np.testing.assert_allclose(last.values, [[0.75, 0.25], [0.375, 0.625], [0.75, 0.25]], rtol=1e-6)
        forgetful = Fedstill(temperature=1.0, memory=False).merge(side, contributions(told([[0, 1]] * 3)))
        np.testing.assert_allclose(forgetful.values, [[0, 1]] * 3, atol=1e-6)

    def test_a_class_that_few_know_is_a_mean_over_those_who_do(self) -> None:
        # a: (1 + 0.6) / 2 of who knows it; b: 0.4, of one; brought to a sum of 1.
        method, side = Fedstill(temperature=1.0), server()
        method.merge(side, contributions(told([[1.0]] * 3, classes=("a",))))
        found = method.merge(side, contributions(told([[0.6, 0.4]] * 3)))
        np.testing.assert_allclose(found.values, [[0.8 / 1.2, 0.4 / 1.2]] * 3, rtol=1e-6)

    def test_absorb_moves_the_student_to_the_consensus_and_to_its_own_data(self) -> None:
        training = Training(epochs=60, batch_size=8, learning_rate=0.1)
        private = Examples(tensor([[1.0, 0.0], [1.0, 0.0]]), tensor([1, 1]))
        student = client(private=private, training=training, round=2, rounds=2)
        Fedstill(doubt=0).absorb(student, told([[0.5, 0.5], [1, 0], [0.5, 0.5]]))
        soft = torch.softmax(student.predict(PROXY), -1)
        assert soft[1, 0] > 0.8
        # Two private examples say b and one proxy sample says even: (2 · 1 + 0.5) / 3 = 0.83.
        assert soft[0, 1] == pytest.approx(2.5 / 3, abs=0.06)

    @pytest.mark.parametrize(("number", "doubt"), [(1, 1.0), (2, 0.75), (4, 0.25)])
    def test_doubt_fades_from_round_to_round(self, monkeypatch: pytest.MonkeyPatch, number: int, doubt: float) -> None:
        heard: list[SoftLabels] = []
        monkeypatch.setattr(Client, "train_among", lambda _, teacher: heard.append(teacher))
        Fedstill().absorb(client(round=number, rounds=4), told([[1, 0]] * 3))
        np.testing.assert_allclose(heard[0].values, [[1 - doubt / 2, doubt / 2]] * 3, rtol=1e-6)

    def test_at_the_finish_proxy_samples_are_enough(self) -> None:
        private = Examples(tensor([[1.0, 0.0], [1.0, 0.0]]), tensor([1, 1]))
        training = Training(epochs=60, batch_size=8, learning_rate=0.1)
        # Who does not trust the teacher wholly has its own data beside it.
        for trust, found in ((1.0, 0.0), (0.5, 2 / (2 + 1 / 3))):
            student = client(private=private, training=training, round=3, rounds=2, trust=trust)
            Fedstill().absorb(student, told([[1, 0]] * 3))
            assert torch.softmax(student.predict(PROXY), -1)[0, 1] == pytest.approx(found, abs=0.1)

    def test_who_has_heard_nothing_doubts_everything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        heard: list[SoftLabels] = []
        monkeypatch.setattr(Client, "train_among", lambda _, teacher: heard.append(teacher))
        student = client(((LN3, LN3), (0, 0)))
        Fedstill().local(student)
        np.testing.assert_allclose(heard[0].values, [[0.5, 0.5]] * 3, rtol=1e-6)
        # Once a round: who has trained in `absorb` only answers.
        Fedstill().absorb(student, told([[1, 0]] * 3))
        Fedstill().local(student)
        assert len(heard) == 2

    def test_doubt_keeps_a_student_from_being_sure_of_what_it_never_saw(self) -> None:
        private = Examples(tensor([[1.0, 0.0]] * 4), tensor([0, 0, 0, 0]))
        training = Training(epochs=40, batch_size=8, learning_rate=0.1)
        sure = {
            doubt: Fedstill(doubt=doubt).local(client(private=private, training=training)).values
            for doubt in (0.0, 1.0)
        }
        # The third sample has something of the private ones, and something new.
        assert sure[0.0][2, 0] > 0.95
        assert sure[1.0][2, 0] < 0.75
        assert sure[1.0][0, 0] > 0.8

    @pytest.mark.parametrize(("examples", "found"), [(1, 3 / 4), (3, 3 / 4), (9, 9 / 10)])
    def test_many_proxy_samples_do_not_drown_few_examples(self, examples: int, found: float) -> None:
        private = Examples(tensor([[1.0, 0.0]] * examples), tensor([1] * examples))
        one = client(private=private, training=Training(epochs=200, batch_size=16, learning_rate=0.05))
        # One of the three proxy samples is like the examples: at most a third of their weight, against them.
        one.train_among(told([[1, 0]] * 3))
        assert torch.softmax(one.predict(PROXY), -1)[0, 1] == pytest.approx(found, abs=0.03)

    def test_a_client_that_trusts_nothing_trains_alone(self) -> None:
        private = Examples(tensor([[1.0, 0.0], [1.0, 0.0]]), tensor([1, 1]))
        one = client(private=private, training=Training(epochs=60, batch_size=8, learning_rate=0.1), trust=0.0)
        one.train_among(told([[1, 0]] * 3))
        assert torch.softmax(one.predict(PROXY), -1)[0, 1] > 0.95
        assert torch.equal(weights(one)[:, 1], torch.zeros(2))

    def test_a_client_without_a_class_of_the_teacher_trains_alone(self) -> None:
        one, alone = client(), client()
        one.train_among(told([[1, 0]] * 3, classes=("c", "d")))
        alone.train()
        assert torch.equal(weights(one), weights(alone))

    def test_other_kinds_distil_and_then_train(self) -> None:
        several = TaskSpec("t", "multi-label", "tabular", ("a", "b"), (2,))
        labels = SoftLabels("multi-label", ("a", "b"), SAMPLES, np.array([[1, 0], [0, 1], [0.5, 0.5]], np.float32))
        private = Examples(torch.zeros(0, 2), torch.zeros(0, 2))
        student = client(spec=several, private=private, training=Training(batch_size=4, learning_rate=0.1))
        before = student.distil(labels, epochs=1)
        Fedstill(distil_epochs=30).absorb(student, labels)
        assert student.distil(labels, epochs=1) < before

    def test_doubt_is_a_share(self) -> None:
        with pytest.raises(ConfigError, match="expected 0 <= value <= 1"):
            Fedstill(doubt=1.5)


class TestLocalAndCentral:
    def test_local_trains_and_tells_nothing(self) -> None:
        student = client()
        method: Any = Local()
        assert method.start(server()) is method.local(student) is method.merge(server(), []) is None
        method.absorb(student, told(np.full((3, 2), 0.5)))
        assert weights(student)[0, 0] > 0 > weights(student)[1, 0]

    def test_central_trains_the_server_on_everything(self) -> None:
        data = Examples(tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([0, 1]))
        side = server(pooled=lambda: data)
        method: Any = Central()
        assert method.start(side) is method.merge(side, []) is None
        assert weights(side)[0, 0] > 0 > weights(side)[1, 0]
        # One client with all the data does the same steps, for purpose and seed are the same.
        alone = client(private=data)
        alone.train()
        assert torch.equal(weights(side), weights(alone))

    def test_central_refuses_to_run_where_data_is_private(self) -> None:
        with pytest.raises(UnsupportedError, match="expected a simulation"):
            Central().start(server())


class TestDistil:
    """A student over some of the teacher's classes, in an order of its own."""

    def loss(self, student: Client, teacher: SoftLabels) -> float:
        return student.distil(teacher, epochs=1)

    def test_classes_are_aligned_by_name(self) -> None:
        # The student's logits are (ln 3, 0) for (b, a): the teacher's a = 1/4, b = 3/4 is what it says already.
        student = client(((LN3, LN3), (0, 0)), spec=spec("b", "a"), samples=np.array([0]))
        assert self.loss(student, told([[0.25, 0.75]], samples=[0])) == pytest.approx(0, abs=1e-6)

    def test_logits_are_aligned_by_name(self) -> None:
        student = client(((LN3, LN3), (0, 0)), spec=spec("b", "a"))
        assert self.loss(student, told([[0.0, LN3]], samples=[0], form="logits")) == pytest.approx(0, abs=1e-6)

    def test_a_class_that_the_student_lacks_takes_its_mass_along(self) -> None:
        # Over (a, b) the teacher says (1/2, 1/2) with mass 0.6, the student (3/4, 1/4): 0.6 · ½ ln(4/3)
        student = client(((LN3, LN3), (0, 0)))
        teacher = told([[0.4, 0.3, 0.3]], ("z", "a", "b"), [0])
        assert self.loss(student, teacher) == pytest.approx(0.3 * math.log(4 / 3), rel=1e-5)

    def test_a_class_that_the_teacher_lacks_is_left_alone(self) -> None:
        student = client(((LN3, LN3), (0, 0), (7, 7)), spec=spec("a", "b", "c"))
        assert self.loss(student, told([[0.75, 0.25]], samples=[0])) == pytest.approx(0, abs=1e-6)
        assert weights(student)[2].tolist() == [7, 7]

    def test_nothing_in_common(self) -> None:
        student = client(((1, 2), (3, 4)))
        assert math.isnan(self.loss(student, told([[1.0]], ("z",), [0])))
        assert weights(student).tolist() == [[1, 2], [3, 4]]

    def test_samples_outside_the_proxy_set(self) -> None:
        with pytest.raises(KnowledgeError, match="proxy sample 3: expected 0 to 2"):
            self.loss(client(), told([[0.5, 0.5]], samples=[3]))


def test_knowledge_of_another_kind_is_refused() -> None:
    with pytest.raises(KnowledgeError, match="expected SoftLabels"):
        soft_labels_of(client().parameters())


@pytest.mark.parametrize("name", ALGORITHMS.names())
class TestEveryMethod:
    def test_bad_hyper_parameters_are_refused(self, name: str) -> None:
        kind = ALGORITHMS.get(name)
        for part in fields(kind):
            if isinstance(part.default, int | float) and not isinstance(part.default, bool):
                without = part.default == 0 or (name, part.name) in ZERO_IS_GOOD
                for bad in (-1, math.nan) if without else (-1, 0, math.nan):
                    with pytest.raises(ConfigError):
                        build(kind, {part.name.replace("_", "-"): bad}, "algorithm")
            if isinstance(part.default, str):
                with pytest.raises(ConfigError):
                    build(kind, {part.name.replace("_", "-"): "surely not"}, "algorithm")

    def test_unknown_hyper_parameters_are_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"unknown key 'algorithm\.temperatur'"):
            build(ALGORITHMS.get(name), {"temperatur": 1.0}, "algorithm")

    def test_it_says_what_it_is(self, name: str) -> None:
        kind = ALGORITHMS.get(name)
        assert kind.name == name
        assert kind.exchange in (*KNOWLEDGE, "nothing", "data")
        assert kind.outputs <= set(OUTPUTS.names())
        assert not kind.paper or "https://" in kind.paper


def test_a_model_that_teaches_answers_on_all_that_it_was_told() -> None:
    """A consensus may be about more than the round's samples: the last one of `fedstill` is."""
    side = server(samples=np.array([1]))
    assert taught(side, told([[1, 0]] * 3), epochs=1).samples.tolist() == [0, 1, 2]
    assert taught(side, told([[1, 0]], samples=np.array([0])), epochs=1).samples.tolist() == [0, 1]
    assert side.samples.tolist() == [1]
