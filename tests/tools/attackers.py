"""Sites that introduce themselves honestly, and then send malformed contributions of every kind."""

from __future__ import annotations

from dataclasses import dataclass, field

import malformed_objects  # noqa: F401 # registers its kinds
import numpy as np
from flwr.app import Context, Message, RecordDict
from light_sites import Line, computing, honest
from malformed import KINDS, Kind, Raw, Sound

from fedstill.common import records
from fedstill.common.algorithm import asked
from fedstill.common.knowledge import SoftLabels
from fedstill.common.messages import ROUND, Answer, Order, TaskAnswer
from fedstill.common.packing import packed
from fedstill.common.registry import ALGORITHMS
from fedstill.common.scenario import build
from fedstill.common.seeding import numpy_rng


@dataclass(slots=True)
class Diary:
    """What all attackers have done.

    Attributes:
        sent: kind by step and site; the last one that was sent in a step.
        taken: of what Flower should refuse, how often it was sent and how often taken, by name.
        said: the last sound answer of each, which others replay.
    """

    sent: dict[tuple[int, str], str] = field(default_factory=dict)
    refused: dict[str, list[bool]] = field(default_factory=dict)
    said: dict[str, RecordDict] = field(default_factory=dict)


@dataclass(slots=True)
class Attacker:
    """A site that introduces itself honestly, and then answers every order with something else.

    Attributes:
        name: of the site.
        number: among the attackers.
        of: how many there are.
        classes: that it announces.
        seed: of what is left to chance.
        diary: shared by all attackers.
        silent: number of the round in which replies never come whole; 0 for none.
        before: its last sound answer.
    """

    name: str
    number: int
    of: int
    classes: tuple[str, ...]
    seed: int
    diary: Diary
    silent: int = 0
    before: RecordDict | None = None

    def __call__(self, line: Line, message: Message, context: Context) -> None:
        """Answer."""
        if message.metadata.message_type == "query.describe":
            honest(line, message, context)
            return
        order = records.read_order(message.content)
        chosen = self.kind(order, in_round=message.metadata.message_type == ROUND)
        rng = numpy_rng(self.seed, "attack", self.name, order.round, message.metadata.message_type)
        with computing(context):
            sound = self.sound(message, order, rng)
            said = records.write_answer(sound.answer, order)
            made = chosen.make(sound)
            self.before = said
            self.diary.said[self.name] = said
            self.diary.sent[order.round, self.name] = chosen.name
            if isinstance(made, RecordDict) and rng.integers(10):
                made = packed(made)  # as an honest site does; the server has to read the others as well
            reply = Message(made if not isinstance(made, Raw) else RecordDict(), reply_to=message)
            second = Message(said, reply_to=message)
        if isinstance(made, Raw):
            reply.metadata.__dict__["_message_id"] = made.root.id
            objects = {key: data for key, data in made.root.objects.items() if key not in made.withheld}
            try:
                line.push(reply, made.root.tree, objects)
            except Exception:
                if chosen.when != "silent":  # there, the SuperLink is to refuse
                    raise
        else:
            line.reply(reply)
        if not rng.integers(5):
            self._more(line, message, second, rng)

    def kind(self, order: Order, *, in_round: bool) -> Kind:
        """What it does in a step: all attackers together do everything, as often, as far as the steps allow it."""
        if in_round and order.round == self.silent:
            fitting = [one for one in KINDS.values() if one.when == "silent"]
            return fitting[self.number % len(fitting)]
        anywhere = [one for one in KINDS.values() if one.when == "any"]
        if not in_round:
            return anywhere[-1 - (self.number + self.of * (order.round > 0)) % len(anywhere)]
        there = {"round", "raw"} if order.method.codec.name == "raw" else {"round"}
        fitting = [one for one in KINDS.values() if one.when in there] + anywhere
        return fitting[(self.number + self.of * (order.round - 1)) % len(fitting)]

    def sound(self, message: Message, order: Order, rng: np.random.Generator) -> Sound:
        """An answer that would count."""
        ((task, part),) = order.tasks.items()
        knowledge = None
        if len(part.samples):
            values = rng.dirichlet(np.ones(len(self.classes)), len(part.samples)).astype(np.float32)
            values = np.maximum(values, np.float32(1e-3))
            method = build(ALGORITHMS.get(order.method.algorithm), order.method.options, "algorithm")
            form, temperature = asked(method)
            knowledge = SoftLabels(
                "categorical", self.classes, part.samples, values / values.sum(1, keepdims=True), temperature, form
            )
        told = TaskAnswer(part.proxy_digest, 60, knowledge, {"trained.accuracy": 0.5})
        answer = Answer(self.name, order.run, order.round, order.attempt, order.version, {task: told})
        return Sound(
            self.name,
            message,
            order,
            task,
            answer,
            records.write_answer(answer, order),
            self.before,
            dict(self.diary.said),
            rng,
        )

    def _more(self, line: Line, message: Message, second: Message, rng: np.random.Generator) -> None:
        """What the SuperLink is to refuse: a second reply, one to a question nobody asked, one of another node."""
        way = ("second-reply", "reply-to-nothing", "reply-as-another-node")[int(rng.integers(3))]
        if way == "reply-to-nothing":
            second.metadata.__dict__["_reply_to_message_id"] = rng.bytes(32).hex()
        elif way == "reply-as-another-node":
            second.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id ^ 1
        try:
            taken = line.reply(second)
        except Exception:
            taken = False
        self.diary.refused.setdefault(way, []).append(taken)
