"""What may leave a client, and what it may be asked: the last thing that an answer passes, on the client's machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedstill.client.holdings import Holdings
from fedstill.client.policy import USUAL, Policy
from fedstill.common.errors import ConfigError, MismatchError, Reason, RefusalError, nearest
from fedstill.common.knowledge import KNOWLEDGE, PRIVATE, Knowledge
from fedstill.common.messages import Answer, Order

RELEASE_VARIABLE = "FEDSTILL_RELEASE"
"""Environment variable: kinds of knowledge, with commas, that may leave clients here beside the usual ones."""


@dataclass(frozen=True, slots=True)
class Guard:
    """The client's own policy; no message of the server changes it.

    Attributes:
        knowledge: kinds of knowledge that may leave: if nobody says otherwise, all but what is about each private
            example.
        policy: what else the client's owner has decided.
    """

    knowledge: frozenset[str] = frozenset(USUAL)
    policy: Policy = field(default_factory=Policy)

    def check_order(self, order: Order, holdings: Holdings) -> None:
        """Refuse an order about another proxy set than this client's own copy, or one that asks for too much.

        A server that chose the proxy samples could ask about private ones: the client answers on its own copy of the
        public set only.

        Raises:
            MismatchError: if the digests differ.
            RefusalError: if the policy is against it.
        """
        for name, holding in holdings.tasks.items():
            if name not in order.tasks:
                continue
            if order.tasks[name].proxy_digest != holding.proxy.digest:
                raise MismatchError(
                    f"proxy set {order.tasks[name].proxy_digest[:12]} of task '{name}'",
                    f"expected {holding.proxy.digest[:12]}, the one this client holds",
                    "give both sides the same public pack, or the same data folder, scenario and seed",
                    reason=Reason.PROXY,
                )
            self.check_pinned(name, holding.proxy.digest)
        self._check_method(order)
        self._check_amount(order)

    def check_pinned(self, task: str, digest: str) -> None:
        """Refuse public samples that the owner has not pinned.

        Raises:
            RefusalError: naming them.
        """
        pins = self.policy.proxy_digests
        if pins and digest not in pins:
            raise RefusalError(
                f"public samples {digest} of task '{task}'",
                f"this client answers about {', '.join(pins)} only",
                "look at the new pack, and pin it in policy.proxy-digests",
            )

    def _check_method(self, order: Order) -> None:
        for what, asked, allowed in (
            ("algorithm", order.method.algorithm, self.policy.algorithms),
            ("codec", order.method.codec.name, self.policy.codecs),
        ):
            if allowed and asked not in allowed:
                raise RefusalError(
                    f"{what} '{asked}'", f"this client takes part with {', '.join(allowed)}", f"see policy.{what}s"
                )

    def _check_amount(self, order: Order) -> None:
        training = order.method.training
        samples = sum(len(task.samples) for task in order.tasks.values())
        _at_most(self.policy.samples_per_round, samples, "public samples", "policy.samples-per-round")
        _at_most(self.policy.max_rounds, order.rounds, "rounds", "policy.max-rounds")
        epochs = {"training.epochs with warmup": training.epochs + training.warmup, **_epochs(order.method.options)}
        for name, number in epochs.items():
            _at_most(self.policy.max_epochs, number, name, "policy.max-epochs")

    def release(self, knowledge: Knowledge | None) -> Knowledge | None:
        """Let knowledge go, or refuse.

        Raises:
            RefusalError: if its kind may not leave this client.
        """
        if knowledge is not None and knowledge.kind not in self.knowledge:
            raise RefusalError(
                f"knowledge of kind '{knowledge.kind}'",
                f"this client lets out {', '.join(sorted(self.knowledge)) or 'nothing'}",
                f"choose another algorithm, or set {RELEASE_VARIABLE}={knowledge.kind} where the client runs"
                if knowledge.kind in PRIVATE
                else "choose another algorithm, or allow it in the client's own configuration",
            )
        return knowledge

    def lets_out(self, answer: Answer) -> Answer:
        """An answer without what may not leave beside knowledge."""
        if self.policy.measures:
            return answer
        tasks = {name: replace(task, metrics={}) for name, task in answer.tasks.items()}
        return replace(answer, tasks=tasks)

    def check_size(self, size: int) -> None:
        """Refuse to send a message of so many bytes.

        Raises:
            RefusalError: if that is too many.
        """
        _at_most(self.policy.message_bytes, size, "bytes of an answer", "policy.message-bytes")


def _epochs(options: Mapping[str, Any]) -> dict[str, float]:
    """Every option of a method that says how often something is gone through."""
    return {
        f"algorithm.{name}": value
        for name, value in options.items()
        if name.endswith("epochs") and isinstance(value, int | float)
    }


def _at_most(limit: int, asked: float, what: str, key: str) -> None:
    if limit and asked > limit:
        raise RefusalError(f"{what}: {asked}", f"this client allows {limit}", f"ask for less, or raise {key} there")


def usual_guard() -> Guard:
    """The guard of a client whose app names none: what may leave anyway, and what the machine's owner adds.

    Raises:
        ConfigError: if the environment variable names a kind that there is not.
    """
    added = {kind.strip() for kind in os.environ.get(RELEASE_VARIABLE, "").split(",")} - {""}
    for kind in sorted(added - KNOWLEDGE.keys()):
        raise ConfigError(f"{RELEASE_VARIABLE}={kind}", "expected a kind of knowledge", nearest(kind, KNOWLEDGE))
    return Guard(Guard().knowledge | added)


def site_guard(policy: Policy, own: Guard | None) -> Guard:
    """The guard of a site: its policy, and nothing that the app's own guard does not let out."""
    kinds = frozenset(policy.knowledge)
    return Guard(kinds if own is None else kinds & own.knowledge, policy)
