"""Methods that exchange something for each class: exact means and losses, and what is left of the own share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn, tensor

from fedstill.common.algorithms.fd import FD, cross_entropy
from fedstill.common.algorithms.fedhkd import FedHKD, lengths, mean_distance
from fedstill.common.algorithms.fedproto import FedProto, distance
from fedstill.common.data.proxy import ProxySet
from fedstill.common.errors import ConfigError, KnowledgeError, UnsupportedError
from fedstill.common.knowledge import Contribution, Prototypes
from fedstill.common.learning import Training
from fedstill.common.models import build_model, embedding_width
from fedstill.common.network import Embedded, Network, last_layer
from fedstill.common.prototypes import class_means, features_over, from_means, mean_prototypes, predictions_over
from fedstill.common.sides import Client, Server
from fedstill.common.task import Examples, TaskSpec

LN3 = math.log(3)
SPACE = ("a", "b", "c")
METHODS: list[Any] = [FD(), FedProto(), FedHKD()]


def spec(*classes: str) -> TaskSpec:
    return TaskSpec("t", "categorical", "tabular", classes or ("a", "b"), (2,))


def network(weight: Any = ((1.0, 0.0), (0.0, 1.0)), *, scale: float = 1.0) -> Network:
    """Embedding x · scale, and raw outputs W times that."""
    body, head = nn.Linear(2, 2, bias=False), nn.Linear(2, len(weight), bias=False)
    with torch.no_grad():
        body.weight.copy_(torch.eye(2) * scale)
        head.weight.copy_(tensor(weight, dtype=torch.float32))
    return Network(body, head)


def client(model: nn.Module | None = None, **others: Any) -> Client:
    data = Examples(tensor([[LN3, 0.0], [0.0, 0.0], [0.0, LN3]]), tensor([0, 0, 1]))
    given: dict[str, Any] = {
        "spec": spec(),
        "model_name": "two-layers",
        "model": model or network(),
        "proxy": ProxySet(torch.zeros(1, 2)),
        "samples": np.arange(1),
        "training": Training(epochs=1, batch_size=4, learning_rate=1e-12),
        "seed": 1,
        "round": 1,
        "name": "client-0",
        "private": data,
    }
    return Client(**given | others)


def server(*classes: str, number: int = 1) -> Server:
    side = client()
    return Server(
        spec=spec(*(classes or SPACE)),
        model_name=side.model_name,
        model=side.model,
        proxy=side.proxy,
        samples=side.samples,
        training=side.training,
        seed=1,
        round=number,
    )


def protos(classes: str, counts: Any, **others: Any) -> Prototypes:
    """Prototypes of classes of one letter each."""
    given: dict[str, Any] = {"features": np.zeros((len(classes), 0)), "predictions": np.zeros((len(classes), 0))}
    given |= others
    arrays = {key: np.asarray(given[key], np.float32) for key in ("features", "predictions")}
    return Prototypes(
        tuple(classes), np.asarray(counts, np.int64), columns=tuple(given.pop("columns", ())), **given | arrays
    )


def said(*knowledge: Prototypes) -> list[Contribution]:
    return [Contribution(f"client-{number}", 9, one) for number, one in enumerate(knowledge)]


def weights(side: Client) -> Mapping[str, Tensor]:
    return {name: value.clone() for name, value in side.model.state_dict().items()}


class TestMeans:
    def test_class_means(self) -> None:
        means, counts = class_means(tensor([[1.0, 2.0], [5.0, 0.0], [3.0, 4.0]]), tensor([2, 0, 2]), 3)
        assert means.tolist() == [[5, 0], [0, 0], [2, 3]]
        assert counts.tolist() == [1, 0, 2]
        told = from_means(SPACE, counts, round=4, features=means)
        assert (told.classes, told.columns, told.round) == (("a", "c"), (), 4)
        assert told.features.tolist() == [[5, 0], [2, 3]]
        assert told.counts.tolist() == [1, 2]

    def test_a_class_is_averaged_over_those_who_have_it(self) -> None:
        one = protos("ab", [1, 2], features=[[2], [4]])
        two = protos("ba", [6, 3], features=[[8], [6]])
        three = protos("c", [5], features=[[1]])
        mean = mean_prototypes([one, two, three], space=SPACE, round=7)
        # a: (1 · 2 + 3 · 6) / 4, b: (2 · 4 + 6 · 8) / 8
        assert mean.classes == SPACE
        assert mean.features.tolist() == [[5], [7], [1]]
        assert mean.counts.tolist() == [4, 8, 5]
        assert mean.round == 7

    def test_a_class_that_a_model_lacks_has_probability_0(self) -> None:
        one = protos("b", [1], predictions=[[0.4, 0.6]], columns="ab")
        two = protos("b", [1], predictions=[[0.6, 0.4]], columns="bc")
        mean = mean_prototypes([one, two], space=SPACE, round=1)
        np.testing.assert_allclose(mean.predictions, [[0.2, 0.6, 0.2]], rtol=1e-6)
        assert mean.columns == SPACE
        values, counts = predictions_over(mean, ("b", "a"))
        np.testing.assert_allclose(values, [[0.75, 0.25], [0.0, 0.0]], rtol=1e-6)
        assert counts.tolist() == [2, 0]
        # Without the first one's share the second's is left, of which the first knows b alone.
        values, counts = predictions_over(mean, ("a", "b"), without=(tensor([[0.0, 0.0], [0.4, 0.6]]), tensor([0, 1])))
        np.testing.assert_allclose(values, [[0, 0], [0, 1]], atol=1e-6)
        assert counts.tolist() == [0, 1]

    def test_nothing_is_left_of_a_class_that_nobody_else_has(self) -> None:
        own = protos("ab", [1, 1], predictions=[[0.9, 0.1], [0.3, 0.7]], columns="ab")
        values, counts = predictions_over(
            mean_prototypes([own], space=SPACE, round=1),
            ("a", "b"),
            without=(torch.from_numpy(own.predictions), tensor([1, 1])),
        )
        assert values.tolist() == [[0, 0], [0, 0]]
        assert counts.tolist() == [0, 0]

    def test_features_go_by_name(self) -> None:
        values, counts = features_over(protos("ca", [2, 3], features=[[1, 2], [3, 4]]), ("a", "b", "c"))
        assert values.tolist() == [[3, 4], [0, 0], [1, 2]]
        assert counts.tolist() == [3, 0, 2]
        values, counts = features_over(protos("z", [2], features=[[1, 2]]), ("a",))
        assert values.tolist() == [[0, 0]]
        assert counts.tolist() == [0]

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 10**6), clients=st.integers(2, 6), sent=st.sampled_from([np.float32, np.float16]))
    @example(seed=0, clients=2, sent=np.float16)
    def test_without_the_own_share_it_is_the_mean_of_the_others(self, seed: int, clients: int, sent: Any) -> None:
        rng = np.random.default_rng(seed)
        own, told = ("a", "b", "c"), []
        for _ in range(clients):
            rows = np.sort(rng.choice(3, rng.integers(1, 4), replace=False))
            said_by = rng.dirichlet(np.ones(3), len(rows)).astype(np.float32)
            told.append(
                protos("".join(own[row] for row in rows), np.ones(len(rows)), predictions=said_by, columns="abc")
            )
        rounded = [replace(one, predictions=one.predictions.astype(sent).astype(np.float32)) for one in told]
        share, voices = torch.zeros(3, 3), torch.zeros(3, dtype=torch.int64)
        for row, name in enumerate(told[0].classes):
            share[own.index(name)] = torch.from_numpy(told[0].predictions[row])
            voices[own.index(name)] = 1
        values, counts = predictions_over(mean_prototypes(rounded, space=own, round=1), own, without=(share, voices))
        others, others_counts = predictions_over(mean_prototypes(told[1:], space=own, round=1), own)
        assert counts.tolist() == others_counts.tolist()
        np.testing.assert_allclose(values, others, atol=1e-5 if sent is np.float32 else 5e-3)

    def test_what_has_no_mean_is_refused(self) -> None:
        narrow, wide = protos("a", [1], features=[[1]]), protos("a", [1], features=[[1, 2]])
        for opinions in ([], [narrow, wide], [narrow, protos("a", [1], predictions=[[1]], columns="a")]):
            with pytest.raises(KnowledgeError, match="expected at least one, of one width"):
                mean_prototypes(opinions, space=SPACE, round=1)


class TestEmbeddings:
    def test_they_are_what_the_last_layer_reads(self) -> None:
        embeddings, logits = client(network(((1, 1), (0, 2)), scale=2.0)).embedded()
        np.testing.assert_allclose(embeddings, [[2 * LN3, 0.0], [0.0, 0.0], [0.0, 2 * LN3]], rtol=1e-6)
        np.testing.assert_allclose(logits, [[2 * LN3, 0.0], [0.0, 0.0], [2 * LN3, 4 * LN3]], rtol=1e-6)

    @pytest.mark.parametrize(
        ("name", "modality", "shape"),
        [
            ("cnn-small", "image", (1, 8, 8)),
            ("resnet-8", "image", (1, 8, 8)),
            ("mlp-medium", "tabular", (5,)),
            ("bag-small", "text", (6,)),
            ("textcnn-small", "text", (6,)),
            ("transformer-small", "text", (6,)),
            ("bag-small", "text", (2, 6)),
            ("speechcnn-small", "speech", (1, 40, 64)),
        ],
    )
    def test_every_family_has_them(self, name: str, modality: str, shape: tuple[int, ...]) -> None:
        text = modality == "text"
        what = TaskSpec("t", "categorical", modality, ("a", "b", "c"), shape, vocabulary=9 if text else 0)
        model = build_model(name, what, seed=1).eval()
        inputs = torch.ones((2, *shape), dtype=torch.int64 if text else torch.float32)
        both = Embedded(model, name)(inputs)
        width = embedding_width(name, what)
        assert both.shape == (2, width + 3)
        torch.testing.assert_close(both[:, width:], model(inputs))
        torch.testing.assert_close(last_layer(model, name)(both[:, :width]), model(inputs))

    def test_models_without_them_are_refused(self) -> None:
        with pytest.raises(UnsupportedError, match="choose a model with hidden layers"):
            FedProto().local(client(Network(nn.Flatten(), nn.Linear(2, 2))))
        odd = Network(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Softplus()))
        with pytest.raises(UnsupportedError, match="expected a head that ends in a linear layer"):
            FedProto().local(client(odd))

    @pytest.mark.parametrize("consistency", [0.0, 0.5])
    @pytest.mark.parametrize("warmup", [0, 2])
    def test_training_with_them_takes_the_same_steps(self, consistency: float, warmup: int) -> None:
        training = Training(epochs=3, batch_size=2, learning_rate=0.05, consistency=consistency, warmup=warmup)
        one, two = (client(build_model("mlp-small", spec(), seed=1), training=training) for _ in range(2))
        kind = one.spec.kind
        assert one.train() == two.train_embedded(lambda _, logits, targets: kind.loss(logits, targets))
        for name, value in weights(one).items():
            assert torch.equal(value, weights(two)[name])


class TestFD:
    def test_the_answer_is_the_mean_probability_of_each_class(self) -> None:
        # (3/4, 1/4) and (1/2, 1/2) of class a, (1/4, 3/4) of class b
        told = FD().local(client(round=3))
        assert (told.classes, told.columns, told.round) == (("a", "b"), ("a", "b"), 3)
        np.testing.assert_allclose(told.predictions, [[0.625, 0.375], [0.25, 0.75]], rtol=1e-6)
        # One voice, however many examples: the paper's mean is over clients.
        assert told.counts.tolist() == [1, 1]

    def test_merge_gives_every_client_the_same_weight(self) -> None:
        one = protos("ab", [1, 1], predictions=[[0.9, 0.1], [0.2, 0.8]], columns="ab")
        two = protos("a", [1], predictions=[[0.6, 0.4]], columns="ab")
        mean = FD().merge(server("a", "b", number=5), said(one, two))
        np.testing.assert_allclose(mean.predictions, [[0.75, 0.25], [0.2, 0.8]], rtol=1e-6)
        assert mean.counts.tolist() == [2, 1]
        assert mean.round == 5

    def test_each_client_learns_from_the_others_alone(self) -> None:
        student = client()
        own = FD().local(student)
        other = protos("a", [1], predictions=[[0.2, 0.8]], columns="ab")
        FD().absorb(student, FD().merge(server("a", "b"), said(own, other)))
        np.testing.assert_allclose(student.memory["fd.told"], [[0.2, 0.8], [0.0, 0.0]], atol=1e-6)
        assert student.memory["fd.there"].tolist() == [1, 0]

    def test_a_share_of_another_round_is_left_where_it_is(self) -> None:
        # The client answered in round 1; round 2 went by without it.
        student = client()
        FD().local(student)
        other = protos("a", [1], predictions=[[0.2, 0.8]], columns="ab")
        FD().absorb(student, FD().merge(server("a", "b", number=2), said(other)))
        np.testing.assert_allclose(student.memory["fd.told"][0], [0.2, 0.8], rtol=1e-6)

    def test_loss(self) -> None:
        # −(0.2 ln ¾ + 0.8 ln ¼) for the first, nothing for the second, mean of two
        logits, soft = tensor([[LN3, 0.0], [0.0, 0.0]]), tensor([[0.2, 0.8], [0.0, 0.0]])
        wanted = -(0.2 * math.log(0.75) + 0.8 * math.log(0.25)) / 2
        assert cross_entropy(logits, soft, tensor([1.0, 0.0])).item() == pytest.approx(wanted, rel=1e-6)

    def test_the_others_draw_the_student(self) -> None:
        told = protos("a", [1], predictions=[[0.0, 1.0]], columns="ab", round=9)
        training = Training(epochs=40, batch_size=4, learning_rate=0.05)
        answers = []
        for weight in (1e-9, 5.0):
            student = client(training=training)
            FD(weight=weight).absorb(student, told)
            answers.append(FD(weight=weight).local(student).predictions[0, 0])
        assert answers[0] > 0.7
        assert answers[1] < 0.4


class TestFedProto:
    def test_the_answer_is_the_mean_embedding_of_each_class(self) -> None:
        told = FedProto().local(client(round=2))
        np.testing.assert_allclose(told.features, [[LN3 / 2, 0.0], [0.0, LN3]], rtol=1e-6, atol=1e-9)
        assert (told.classes, told.columns, told.round) == (("a", "b"), (), 2)
        assert told.counts.tolist() == [2, 1]

    def test_width_averages_neighbours(self) -> None:
        told = FedProto(width=1).local(client())
        np.testing.assert_allclose(told.features, [[LN3 / 4], [LN3 / 2]], rtol=1e-6)
        with pytest.raises(ConfigError, match="expected at most 4096"):
            FedProto(width=4097)

    def test_merge_weights_by_examples(self) -> None:
        mean = FedProto().merge(
            server(number=4), said(protos("a", [1], features=[[2]]), protos("ab", [3, 1], features=[[6], [1]]))
        )
        assert mean.features.tolist() == [[5], [1]]
        assert (mean.classes, mean.round) == (("a", "b"), 4)

    def test_loss(self) -> None:
        # (1 + 9) / 2 for the first, nothing for the second, mean of two
        found = distance(tensor([[1.0, 3.0], [7.0, 7.0]]), torch.zeros(2, 2), tensor([1.0, 0.0]))
        assert found.item() == pytest.approx(2.5)
        with pytest.raises(UnsupportedError, match="2 features beside prototypes of 3"):
            distance(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1))

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_features_go_to_the_prototypes(self, precision: Any) -> None:
        student = client(training=Training(epochs=150, batch_size=4, learning_rate=0.05, precision=precision))
        FedProto(weight=20.0).absorb(student, protos("b", [5], features=[[2, -2]]))
        told = FedProto(weight=20.0).local(student)
        np.testing.assert_allclose(told.features[1], [2, -2], atol=0.15)


class TestFedHKD:
    def test_the_answer(self) -> None:
        # At T = ½ logits (ln 3, 0) soften to (9/10, 1/10).
        told = FedHKD().local(client(round=2))
        np.testing.assert_allclose(told.features, [[LN3 / 2, 0.0], [0.0, LN3]], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(told.predictions, [[0.7, 0.3], [0.1, 0.9]], rtol=1e-6)
        assert told.counts.tolist() == [2, 1]
        assert (told.classes, told.columns, told.round) == (("a", "b"), ("a", "b"), 2)

    def test_merge_weights_by_examples(self) -> None:
        one = protos("a", [1], features=[[2]], predictions=[[1, 0]], columns="ab")
        two = protos("a", [3], features=[[6]], predictions=[[0.2, 0.8]], columns="ab")
        mean = FedHKD().merge(server("a", "b"), said(one, two))
        assert mean.features.tolist() == [[5]]
        np.testing.assert_allclose(mean.predictions, [[0.4, 0.6]], rtol=1e-6)
        assert mean.counts.tolist() == [4]

    def test_losses(self) -> None:
        assert lengths(tensor([[3.0, 4.0], [0.0, 0.0]])).tolist() == [5, 0]
        rows, wanted = tensor([[3.0, 4.0], [9.0, 9.0], [0.0, 1.0]]), torch.zeros(3, 2)
        assert mean_distance(rows, wanted, tensor([1.0, 0.0, 1.0])).item() == 3
        assert mean_distance(rows, wanted, torch.zeros(3)).item() == 0
        still = torch.zeros(1, 2, requires_grad=True)
        torch.autograd.backward(lengths(still).sum())
        assert still.grad is not None
        assert still.grad.tolist() == [[0, 0]]

    def test_the_whole_loss(self) -> None:
        # A step so short that nothing moves. Both classes' means are at (ln 3, 0), where (0.9, 0.1) is answered.
        told = protos("ab", [1, 1], features=[[LN3, 0], [LN3, 0]], predictions=[[0.9, 0.1], [0.3, 0.7]], columns="ab")
        method, losses = FedHKD(prediction_weight=2.0, feature_weight=3.0), []
        student = client()
        method.absorb(student, told)
        original = student.train_embedded

        def watched(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
            losses.append(original(loss))
            return losses[-1]

        method._train(_Watching(student, watched))  # type: ignore[arg-type]
        plain = -(2 * math.log(0.75) + math.log(0.5)) / 3
        # b: ‖(0.3, 0.7) − (0.9, 0.1)‖ = 0.6 √2, over two classes; distances 0, ln 3 and √2 ln 3 over three examples
        wanted = plain + 2 * 0.3 * math.sqrt(2) + 3 * LN3 * (1 + math.sqrt(2)) / 3
        assert losses == [pytest.approx(wanted, rel=1e-5)]

    def test_noise_is_on_the_features_and_seeded(self) -> None:
        quiet = FedHKD().local(client())
        one, again, other = (FedHKD(noise=0.5).local(client(seed=seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.features, again.features)
        assert not np.allclose(one.features, other.features)
        np.testing.assert_array_equal(one.predictions, quiet.predictions)
        drawn = np.concatenate([FedHKD(noise=0.5).local(client(seed=seed)).features for seed in range(200)])
        assert (drawn - np.tile(quiet.features, (200, 1))).std() == pytest.approx(0.5, rel=0.1)

    def test_another_width_is_refused(self) -> None:
        student = client()
        FedHKD().absorb(student, protos("a", [1], features=[[1]], predictions=[[1]], columns="a"))
        with pytest.raises(UnsupportedError, match="2 features beside prototypes of 1"):
            FedHKD().local(student)

    @pytest.mark.parametrize("precision", ["fp32", "bf16"])
    def test_the_student_learns_both(self, precision: Any) -> None:
        # Class b lies elsewhere than the student has it, and at a place of class c it is to answer c.
        data = Examples(tensor([[1.0, 0.0], [0.0, 1.0]]), tensor([0, 1]))
        student = client(
            network(((1, 0), (0, 1), (0, 0))),
            spec=spec(*SPACE),
            private=data,
            training=Training(epochs=150, batch_size=4, learning_rate=0.05, precision=precision),
        )
        told = protos("bc", [1, 1], features=[[0, 3], [0.5, -0.5]], predictions=[[0, 1, 0], [0, 0, 1]], columns="abc")
        method = FedHKD(prediction_weight=5.0, feature_weight=5.0)
        method.absorb(student, told)
        answer = method.local(student)
        np.testing.assert_allclose(answer.features[1], [0, 3], atol=0.3)
        layer = last_layer(student.model, "two-layers")
        assert layer(tensor([[0.5, -0.5]])).argmax().item() == 2


class _Watching:
    """A client that tells what its training came to."""

    def __init__(self, side: Client, train: Callable[..., float]) -> None:
        self._side = side
        self.train_embedded = train

    def __getattr__(self, name: str) -> Any:
        return getattr(self._side, name)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))
class TestAll:
    def test_without_knowledge_a_client_is_alone(self, method: Any) -> None:
        training = Training(epochs=3, batch_size=2, learning_rate=0.05)
        one, two = client(training=training), client(training=training)
        assert method.start(server()) is None
        method.local(one)
        two.train()
        assert all(torch.equal(value, weights(two)[name]) for name, value in weights(one).items())

    def test_absorbing_changes_no_weight(self, method: Any) -> None:
        student = client()
        answer, before = method.local(client(round=9)), weights(student)
        method.absorb(student, answer)
        assert all(torch.equal(value, weights(student)[name]) for name, value in before.items())

    def test_clients_of_some_classes(self, method: Any) -> None:
        """Nobody knows everything: rows and columns go by name."""
        sides = [
            client(network(((1, 0), (0, 1))), spec=spec(*known), name=f"client-{number}", round=1)
            for number, known in enumerate((("a", "b"), ("b", "c"), ("c", "a")))
        ]
        told = method.merge(server(), said(*(method.local(side) for side in sides)))
        assert told.classes == SPACE
        for side in sides:
            method.absorb(side, told)
            side.round = 2
            assert method.local(side).classes == side.spec.classes

    def test_a_client_that_shares_no_class_learns_alone(self, method: Any) -> None:
        training = Training(epochs=2, batch_size=2, learning_rate=0.05)
        stranger, alone = client(training=training), client(training=training)
        answer = method.local(client(spec=spec("y", "z")))
        method.absorb(stranger, replace(answer, round=0))
        method.local(stranger)
        alone.train()
        for name, value in weights(alone).items():
            torch.testing.assert_close(value, weights(stranger)[name], rtol=1e-6, atol=1e-7)
