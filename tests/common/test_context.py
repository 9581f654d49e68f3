from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedstill.common import records
from fedstill.common.codecs.fp16 import FP16
from fedstill.common.codecs.raw import Raw
from fedstill.common.codecs.sqrtp import SqrtP
from fedstill.common.context import LARGEST, Memories, Remembered, known, remember, remember_through
from fedstill.common.errors import KnowledgeError, Reason
from fedstill.common.knowledge import Parameters, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import Answer, Method, Order, TaskAnswer, TaskOrder
from fedstill.common.packing import content_bytes
from fedstill.common.seeding import numpy_rng
from fedstill.server.questions import as_heard

CLASSES = tuple(f"class-{number}" for number in range(10))
SAMPLES = np.arange(500)


def labels(seed: int, noise: float, samples: np.ndarray[tuple[int], np.dtype[np.int64]] = SAMPLES) -> SoftLabels:
    """Soft labels that are the more like each other the less noise they have."""
    scores = numpy_rng(0, "scores").normal(size=(1000, 10))[samples] * 4
    scores += numpy_rng(seed, "noise").normal(size=scores.shape) * noise
    weights = np.exp(scores)
    values = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return SoftLabels("categorical", CLASSES, samples, values)


def test_a_memory_by_hand() -> None:
    told = SoftLabels(
        "token-level", ("a", "b"), np.array([7, 3]), np.array([[[1, 0], [0, 0]], [[0.25, 0.75]] * 2], dtype=np.float32)
    )
    memory = remember(told)
    assert memory is not None
    # √0.25 · 255 = 127.5 and √0.75 · 255 = 220.8.
    assert memory.roots.tolist() == [[[255, 0], [0, 0]], [[128, 221], [128, 221]]]
    about = memory.about(np.array([3, 5, 7]), ("b", "x"))
    nan = np.nan
    expected = [[[(221 / 255) ** 2, nan]] * 2, [[nan, nan]] * 2, [[0, nan], [nan, nan]]]
    np.testing.assert_allclose(about, np.array(expected), rtol=1e-6)


def test_memories_come_back_from_a_store_and_are_told_apart() -> None:
    memory = remember(labels(1, 0.1))
    assert memory is not None
    back = Remembered.from_arrays(memory.arrays())
    assert back.digest == memory.digest
    others = [
        replace(memory, classes=tuple(reversed(CLASSES))),
        replace(memory, samples=memory.samples + 1),
        replace(memory, roots=memory.roots[:, ::-1]),
        replace(memory, roots=memory.roots.reshape(500, 2, 5)),
    ]
    assert len({memory.digest, *(other.digest for other in others)}) == 5


def test_what_is_remembered() -> None:
    assert remember(None) is None
    assert remember(Parameters("m", {"w": np.ones(3)})) is None
    assert remember(replace(labels(1, 0.1), form="logits")) is None
    assert remember_through(labels(1, 0.1), Raw()) is None
    assert remember_through(None, SqrtP()) is None


def test_a_memory_is_not_blown_up() -> None:
    memory = remember(labels(1, 0.1))
    assert known((memory, None), np.arange(LARGEST // 10 + 1), CLASSES) == [None, None]
    first, second = known((None, memory), SAMPLES, CLASSES)
    assert first is None
    assert second is not None
    assert second.shape == (500, 10)


# Messages ------------------------------------------------------------------------------------------------------------


def order(**parts: Remembered | SoftLabels | None) -> Order:
    method = Method("fedmd", {}, Training(), SqrtP())
    return Order("run", 2, 3, 1, 1, 1, method, {"pets": TaskOrder("digest", SAMPLES, **parts)})  # type: ignore[arg-type]


def answered(asked: Order, told: SoftLabels) -> tuple[int, SoftLabels]:
    """Bytes of an answer, and what is read of it."""
    sent = records.write_answer(Answer("c", "run", 2, 1, 1, {"pets": TaskAnswer("digest", 5, told)}), asked)
    back = records.read_answer(sent, asked).tasks["pets"].knowledge
    assert isinstance(back, SoftLabels)
    return content_bytes(sent), back


def test_an_answer_in_the_context_of_what_both_sides_know() -> None:
    told, consensus = labels(1, 0.5), labels(2, 1.0)
    own = remember_through(labels(3, 0.3), SqrtP())
    (alone, plain), (less, heard), (least, both) = (
        answered(asked, told) for asked in (order(), order(knowledge=consensus), order(knowledge=consensus, own=own))
    )
    assert alone > less > least
    for back in (heard, both):
        np.testing.assert_array_equal(back.values, plain.values)
    # What the client keeps is what the server keeps, whatever it was coded in the context of.
    kept, came = remember_through(told, SqrtP()), remember(both)
    assert kept is not None
    assert came is not None
    assert kept.digest == came.digest


def test_an_answer_about_other_samples_and_fewer_classes() -> None:
    asked = order(knowledge=labels(2, 1.0, np.arange(300, 900)), own=remember_through(labels(3, 0.3), SqrtP()))
    few = labels(1, 0.5, SAMPLES[::3])
    few = replace(few, classes=CLASSES[:4], values=few.values[:, :4] / few.values[:, :4].sum(1, keepdims=True))
    _, back = answered(asked, few)
    _, plain = answered(order(), few)
    np.testing.assert_array_equal(back.values, plain.values)


def test_an_answer_in_another_context_is_rejected_with_its_reason() -> None:
    asked = order(own=remember_through(labels(3, 0.3), SqrtP()))
    told = Answer("c", "run", 2, 1, 1, {"pets": TaskAnswer("digest", 5, labels(1, 0.5))})
    sent = records.write_answer(told, asked)
    for mine in (order(), order(own=remember_through(labels(4, 0.3), SqrtP()))):
        with pytest.raises(KnowledgeError) as caught:
            records.read_answer(sent, mine)
        assert caught.value.reason == Reason.CONTEXT


def test_an_order_in_the_context_of_the_one_before() -> None:
    consensus, before = labels(1, 0.5), remember_through(labels(2, 0.5), SqrtP())
    own = remember_through(labels(3, 0.3), SqrtP())
    asked = order(knowledge=consensus, heard=before, own=own)
    sent = records.write_order(asked)
    assert content_bytes(sent) < content_bytes(records.write_order(order(knowledge=consensus)))

    asking: list[tuple[str, int, str]] = []

    def recall(run: str, version: int, task: str) -> Memories:
        asking.append((run, version, task))
        return Memories(own, before)

    came = records.read_order(sent, recall).tasks["pets"]
    assert asking == [("run", 1, "pets")]
    heard = as_heard(asked, sent).tasks["pets"]
    assert isinstance(came.knowledge, SoftLabels)
    assert isinstance(heard.knowledge, SoftLabels)
    np.testing.assert_array_equal(came.knowledge.values, heard.knowledge.values)
    assert came.own is own
    # A client that has lost its memory cannot read it; one whose own memory is another one leaves that out.
    with pytest.raises(KnowledgeError) as caught:
        records.read_order(sent)
    assert caught.value.reason == Reason.CONTEXT
    assert records.read_order(sent, lambda *_: Memories(before, before)).tasks["pets"].own is None


def test_other_codecs_need_no_memory() -> None:
    asked = replace(order(knowledge=labels(1, 0.5)), method=Method("fedmd", {}, Training(), FP16()))

    def recall(run: str, version: int, task: str) -> Memories:
        raise AssertionError("nobody asks")

    sent = records.write_order(asked)
    assert records.read_order(sent, recall).tasks["pets"].heard is None
    assert as_heard(asked, sent) is asked
