"""Requests that meet are computed together; those that nobody waits for are not computed at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from tests.server.services import IMAGE, TEXT, Gated, images, raw, refused, served

from fedstill.common.learning import Training, predict
from fedstill.common.seeding import torch_rng
from fedstill.common.task import TaskSpec
from fedstill.server.serving.batching import Batcher, Limits


@pytest.fixture
def at_the_gate(serve: Any, ask: Any, question: Any) -> Iterator[Any]:
    """A service whose model has begun a batch of one row and does not go on before the gate is opened."""

    class Waiting:
        def __init__(self, limits: Limits) -> None:
            self.model = Gated(served().model)
            self.service = serve(served(model=self.model), limits=limits)
            self.stub = ask(self.service)
            self.first = self.stub.ModelInfer.future(question(images(1)))
            assert self.model.asked.wait(10)

        def waiting(self, count: int) -> None:
            """Wait until so many requests wait, beside the one at the gate."""
            while self.service.counts("shapes").waiting != count:
                time.sleep(0.002)

    begun: list[Waiting] = []

    def begin(limits: Limits | None = None) -> Waiting:
        begun.append(Waiting(limits or Limits()))
        return begun[-1]

    yield begin
    for one in begun:
        one.model.gate.set()


def test_requests_that_wait_together_are_computed_together_with_the_same_numbers(
    serve: Any, ask: Any, question: Any, at_the_gate: Any
) -> None:
    inputs = images(30)
    parts = list(torch.split(inputs, [1, 2, 3, 1, 1, 5, 1, 8, 1, 7]))
    alone = ask(serve())
    single = [raw(alone.ModelInfer(question(part))) for part in parts]

    here = at_the_gate()
    told = []
    for part in parts:
        told.append(here.stub.ModelInfer.future(question(part)))
        here.waiting(len(told))
    here.model.gate.set()

    for answer, wanted in zip(told, single, strict=True):
        np.testing.assert_array_equal(raw(answer.result()), wanted)
    # Whole blocks are computed where there are enough rows: 1, then 14 of the first 16, then the other 16.
    assert here.model.sizes == [16, 16, 16]
    counts = here.service.counts("shapes")
    assert (counts.batches, counts.rows, counts.dropped) == (3, 31, 0)


@pytest.mark.parametrize(
    ("spec", "architecture"),
    [
        (IMAGE, "cnn-small"),
        (IMAGE, "resnet-8"),
        (IMAGE, "mlp-large"),
        (replace(TEXT, vocabulary=200), "transformer-small"),
        (replace(TEXT, modality="tabular", vocabulary=0), "mlp-medium"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_rows_numbers_do_not_depend_on_its_batch(spec: TaskSpec, architecture: str) -> None:
    one = served(spec, architecture)
    rng = torch_rng(2, "rows")
    shape = (96, *spec.input_shape)
    inputs = torch.randint(1, 200, shape, generator=rng) if spec.vocabulary else torch.randn(shape, generator=rng)
    rows = inputs.numpy()

    whole = one.answer([rows], block=16)
    pieces = [one.answer([part], block=16) for part in np.split(rows, [1, 2, 7, 40, 41, 95])]
    turned = one.answer([rows[40:], rows[:40]], block=16)

    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(torch.cat([turned[56:], turned[:56]]), whole)
    assert torch.equal(predict(one.model, inputs, training=Training()), whole)


def test_many_clients_at_once_get_the_numbers_of_one(serve: Any, ask: Any, question: Any) -> None:
    service, one = serve(), served()
    inputs = images(200)
    wanted = one.answer([inputs.numpy()], block=16).numpy()
    stubs = [ask(service) for _ in range(10)]

    def asked(place: int) -> Any:
        return raw(stubs[place % 10].ModelInfer(question(inputs[place : place + 1], outputs=("logits",))))

    with ThreadPoolExecutor(10) as pool:
        told = list(pool.map(asked, range(200)))

    np.testing.assert_array_equal(np.concatenate(told), wanted)
    assert service.counts("shapes").rows == 200


def test_a_recordings_numbers_depend_on_its_batch_by_rounding_only() -> None:
    spec = TaskSpec("words", "categorical", "speech", ("yes", "no"), (1, 20, 40))
    one = served(spec, "speechcnn-small")
    sounds = torch.randn(24, 1, 20, 40, generator=torch_rng(2, "sounds"))
    sounds[::2, ..., 25:] = 0

    whole = one.answer([sounds.numpy()], block=16)
    single = torch.cat([one.answer([sounds[row : row + 1].numpy()], block=16) for row in range(24)])

    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)


def test_a_batch_is_no_larger_than_its_limit(at_the_gate: Any, question: Any) -> None:
    here = at_the_gate(Limits(batch=4, block=1))
    told = [here.stub.ModelInfer.future(question(images(2))) for _ in range(5)]
    told.append(here.stub.ModelInfer.future(question(images(9))))
    here.waiting(6)
    here.model.gate.set()

    assert [len(raw(one.result())) for one in told] == [2, 2, 2, 2, 2, 9]
    assert sorted(here.model.sizes) == [1, 2, 4, 4, 9]


def test_a_delay_lets_others_join(serve: Any, ask: Any, question: Any) -> None:
    stub = ask(serve(limits=Limits(batch=6, delay=10.0)))

    told = [stub.ModelInfer.future(question(images(2))) for _ in range(3)]

    assert [len(raw(one.result(timeout=8))) for one in told] == [2, 2, 2]  # six rows are there: nobody waits longer


def test_a_request_whose_deadline_has_passed_is_not_computed(at_the_gate: Any, question: Any) -> None:
    here = at_the_gate()

    code, details = refused(lambda: here.stub.ModelInfer(question(images(3)), timeout=0.2))
    gone = here.stub.ModelInfer.future(question(images(5)))
    here.waiting(2)
    gone.cancel()
    later = here.stub.ModelInfer.future(question(images(2)))
    here.waiting(3)
    here.model.gate.set()

    assert code is grpc.StatusCode.DEADLINE_EXCEEDED, details
    assert raw(later.result()).shape == (2, 3)
    counts = here.service.counts("shapes")
    assert (counts.rows, counts.dropped) == (3, 2)


def test_the_batcher_drops_what_is_late_by_its_own_clock() -> None:
    batcher = Batcher(served(), Limits())
    late, well = batcher.submit(images(1).numpy(), deadline=0.0), batcher.submit(images(1).numpy())

    batcher.start()
    assert well.result(timeout=10).shape == (1, 3)
    assert late.cancelled()
    assert batcher.works()
    batcher.close()
    assert not batcher.works()
    assert batcher.submit(images(1).numpy()).cancelled()


def test_more_requests_than_may_wait_are_refused(at_the_gate: Any, question: Any) -> None:
    here = at_the_gate(Limits(requests=3))
    told = [here.stub.ModelInfer.future(question(images(1))) for _ in range(2)]
    here.waiting(2)

    code, details = refused(lambda: here.stub.ModelInfer(question(images(1))))
    here.model.gate.set()

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details == "3 requests wait already: expected fewer at once (try again in a moment)"
    assert [raw(one.result()).shape for one in (here.first, *told)] == [(1, 3)] * 3
    assert raw(here.stub.ModelInfer(question(images(1)))).shape == (1, 3)


def test_a_message_that_is_too_large_is_refused(serve: Any, ask: Any, question: Any) -> None:
    stub = ask(serve(limits=Limits(message=4096)))

    code, details = refused(lambda: stub.ModelInfer(question(images(17))))

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in details
    assert raw(stub.ModelInfer(question(images(8)))).shape == (8, 3)


def test_what_is_under_way_ends_well_and_nothing_new_begins(at_the_gate: Any, question: Any, peer: Any) -> None:
    here = at_the_gate()
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(here.service.stop, grace=10.0)
        while not stopped.done():
            code, _ = refused(lambda: here.stub.ModelInfer(question(images(1)), timeout=0.1))
            if code is grpc.StatusCode.UNAVAILABLE:
                break
        here.model.gate.set()
        assert stopped.result(timeout=10)
    assert raw(here.first.result()).shape == (1, 3)
