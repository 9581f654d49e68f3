"""What may leave a client. The last thing that an answer passes, on the client's own machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fedstill.client.holdings import Holdings
from fedstill.common.errors import ConfigError, MismatchError, Reason, UnsupportedError, nearest
from fedstill.common.knowledge import KNOWLEDGE, PRIVATE, Knowledge
from fedstill.common.messages import Order

RELEASE_VARIABLE = "FEDSTILL_RELEASE"
"""Environment variable: kinds of knowledge, with commas, that may leave clients here beside the usual ones."""


@dataclass(frozen=True, slots=True)
class Guard:
    """The client's own policy; no message of the server changes it.

    Attributes:
        knowledge: kinds of knowledge that may leave: if nobody says otherwise, all but what is about each private
            example.
    """

    knowledge: frozenset[str] = frozenset(KNOWLEDGE) - PRIVATE

    def check_order(self, order: Order, holdings: Holdings) -> None:
        """Refuse an order about another proxy set than this client's own copy.

        A server that chose the proxy samples could ask about private ones: the client answers on its own copy of the
        public set only.

        Raises:
            MismatchError: if the digests differ.
        """
        for name, holding in holdings.tasks.items():
            if name in order.tasks and order.tasks[name].proxy_digest != holding.proxy.digest:
                raise MismatchError(
                    f"proxy set {order.tasks[name].proxy_digest[:12]} of task '{name}'",
                    f"expected {holding.proxy.digest[:12]}, the one this client holds",
                    "give both sides the same data folder, scenario and seed",
                    reason=Reason.PROXY,
                )

    def release(self, knowledge: Knowledge | None) -> Knowledge | None:
        """Let knowledge go, or refuse.

        Raises:
            UnsupportedError: if its kind may not leave this client.
        """
        if knowledge is not None and knowledge.kind not in self.knowledge:
            raise UnsupportedError(
                f"knowledge of kind '{knowledge.kind}'",
                f"this client lets out {', '.join(sorted(self.knowledge)) or 'nothing'}",
                f"choose another algorithm, or set {RELEASE_VARIABLE}={knowledge.kind} where the client runs"
                if knowledge.kind in PRIVATE
                else "choose another algorithm, or allow it in the client's own configuration",
            )
        return knowledge


def usual_guard() -> Guard:
    """The guard of a client whose app names none: what may leave anyway, and what the machine's owner adds.

    Raises:
        ConfigError: if the environment variable names a kind that there is not.
    """
    added = {kind.strip() for kind in os.environ.get(RELEASE_VARIABLE, "").split(",")} - {""}
    for kind in sorted(added - KNOWLEDGE.keys()):
        raise ConfigError(f"{RELEASE_VARIABLE}={kind}", "expected a kind of knowledge", nearest(kind, KNOWLEDGE))
    return Guard(Guard().knowledge | added)
