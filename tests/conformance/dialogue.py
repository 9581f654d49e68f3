"""A program: some rounds between a server and a client in every codec that is discovered, as bytes of messages.

python dialogue.py write MESSAGES           both sides speak
python dialogue.py read MESSAGES HEARD      somebody who hears all of it, and nothing else
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Wire

from fedstill.common import records
from fedstill.common.context import Memories, Recall, Remembered, remember, remember_through
from fedstill.common.knowledge import Knowledge, Parameters, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import Answer, Method, Order, TaskAnswer, TaskOrder
from fedstill.common.packing import packed
from fedstill.common.registry import CODECS
from fedstill.common.seeding import numpy_rng
from fedstill.server.questions import as_heard

ROUNDS = 4

SHAPES = {"few classes": (150, 10), "many classes": (40, 300), "positions": (30, 4, 5)}
"""Of soft labels: proxy samples …, classes."""


def knowledge(what: str, speaker: str, number: int) -> Knowledge:
    """What a side says in a round: like what it said before, about some of the same samples.

    Made of whole numbers, so that no exponential has a last bit to differ in.
    """
    rng = numpy_rng(number, what, speaker)
    if what == "weights":
        return Parameters("m", {"w": rng.integers(-999, 999, (7, 5)).astype(np.float32) / 512, "n": np.arange(3)})
    shape = SHAPES.get(what, (60, 6))
    base = numpy_rng(0, what).integers(0, 60, (2 * shape[0], *shape[1:])) ** 2
    samples = np.sort(rng.permutation(2 * shape[0])[: shape[0]])
    weights = (base[samples] + rng.integers(0, 200, shape)).astype(np.float64)
    values = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    classes = tuple(f"class-{place}" for place in range(shape[-1]))
    if what == "raw outputs":
        return SoftLabels("categorical", classes, samples, values * 8 - 4, form="logits")
    if what == "several labels":
        return SoftLabels("multi-label", classes, samples, np.minimum(values * 4, 1))
    if what == "positions":
        values[:, 3:] = 0  # behind the end of a text
        return SoftLabels("token-level", classes, samples, values)
    return SoftLabels("categorical", classes, samples, values)


def dialogues() -> Iterator[tuple[str, str, bool]]:
    """Codec, what is said, and whether what was said before is remembered."""
    for codec in CODECS.names():
        kind = CODECS.get(codec)
        any_array = () if getattr(kind, "only_distributions", False) else ("weights", "raw outputs", "several labels")
        for what in (*SHAPES, *any_array):
            for remembers in (False, True) if getattr(kind, "uses_context", False) else (False,):
                yield codec, what, remembers


def name(codec: str, what: str, number: int, *, remembers: bool) -> str:
    return f"{codec}, {what}, {'in context' if remembers else 'each by itself'}, round {number}"


def spoken() -> dict[str, str]:
    """Every message, in hexadecimal digits."""
    found = {}
    for codec, what, remembers in dialogues():
        own: Remembered | None = None
        heard: Remembered | None = None
        for number in range(1, ROUNDS + 1):
            consensus, told = (knowledge(what, speaker, number) for speaker in ("server", "client"))
            samples = told.samples if isinstance(told, SoftLabels) else np.arange(5)
            task = TaskOrder("digest", samples, consensus, own=own, heard=heard)
            order = Order(
                "run", number, ROUNDS, 1, 1, number - 1, Method("m", {}, Training(), CODECS.get(codec)()), {"t": task}
            )
            question = packed(records.write_order(order), apart=[records.CLIENT])
            asked = as_heard(order, question)
            answer = Answer("c", "run", number, 1, number - 1, {"t": TaskAnswer("digest", 9, told, {"accuracy": 0.5})})
            reply = packed(records.write_answer(answer, asked))
            for which, content in (("order", question), ("answer", reply)):
                wire = recorddict_to_proto(content).SerializeToString(deterministic=True)
                found[f"{name(codec, what, number, remembers=remembers)}, {which}"] = wire.hex()
            if remembers:
                own, heard = remember_through(told, CODECS.get(codec)()), remember(asked.tasks["t"].knowledge)
    return found


def heard(messages: dict[str, str]) -> dict[str, str]:
    """A digest of what comes out of each message, in the context of what came out of those before."""
    found = {}
    for codec, what, remembers in dialogues():
        memories = Memories()
        for number in range(1, ROUNDS + 1):
            key = name(codec, what, number, remembers=remembers)
            order = records.read_order(_content(messages[f"{key}, order"]), _recall(memories))
            answer = records.read_answer(_content(messages[f"{key}, answer"]), order)
            told, answered = (order.tasks["t"].knowledge, answer.tasks["t"].knowledge)
            found[f"{key}, order"], found[f"{key}, answer"] = _digest(told), _digest(answered)
            if remembers:
                memories = Memories(own=remember(answered), heard=remember(told))
    return found


def _content(message: str) -> RecordDict:
    return recorddict_from_proto(Wire.FromString(bytes.fromhex(message)))


def _recall(memories: Memories) -> Recall:
    return lambda run, version, task: memories


def _digest(told: Knowledge | None) -> str:
    if told is None:
        raise ValueError("a message without knowledge")
    content = hashlib.sha256(json.dumps(told.header(), sort_keys=True).encode())
    for part, array in sorted(told.arrays().items()):
        content.update(f"{part} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return content.hexdigest()


if __name__ == "__main__":
    what_to_do, *paths = sys.argv[1:]
    if what_to_do == "write":
        Path(paths[0]).write_text(json.dumps(spoken()))
    else:
        Path(paths[1]).write_text(json.dumps(heard(json.loads(Path(paths[0]).read_text()))))
