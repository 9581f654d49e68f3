"""What may leave a client. The last thing that an answer passes, on the client's own machine."""

from __future__ import annotations

from dataclasses import dataclass

from fedstill.client.holdings import Holdings
from fedstill.common.errors import MismatchError, Reason, UnsupportedError
from fedstill.common.knowledge import KNOWLEDGE, Knowledge
from fedstill.common.messages import Order


@dataclass(frozen=True, slots=True)
class Guard:
    """The client's own policy; no message of the server changes it.

    Attributes:
        knowledge: kinds of knowledge that may leave: all, if nobody says less.
    """

    knowledge: frozenset[str] = frozenset(KNOWLEDGE)

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
                "choose another algorithm, or allow it in the client's own configuration",
            )
        return knowledge
