"""CFD: soft labels in a few bits both ways; a model on the server distils the clients', and its own answers go back.

Sattler et al. 2020, https://arxiv.org/abs/2012.00632. With client k's probabilities p_k(x) on proxy sample x:

    quantise   Q_b(p) = argmin_q ‖q − p‖₁ over q with Σ_c q_c = 1 and q_c in {0, 1/n, …, 1}, n = 2^b − 1
    local      student ← private data; answer Q_up(p_k)
    merge      server's model ← mean_k Q_up(p_k) on the proxy samples (dual distillation); tell Q_down(its answers)
    absorb     student ← what the server told

For b = 1 the quantised label is the likeliest class. The minimum for any b: every n p_c is rounded down, and what is
left goes to the classes with the largest remainders.

Deviations: (1) Delta coding against the last round's labels and entropy coding are the codec's business: `sqrtp` codes
rows in the context of what both sides remember (labels of 1 bit come out as they went in, others with its loss),
`argmax` sends 1 bit labels in ⌈log₂(C + 1)⌉ bits. (2) The proxy samples are drawn at random: the paper's choice of them
is left out. (3) Distillation minimises KL(q ‖ p). (4) The server speaks only of classes that a client spoke of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedstill.common import check
from fedstill.common.ensemble import mean_soft_labels
from fedstill.common.errors import ConfigError
from fedstill.common.knowledge import Contribution, Knowledge, SoftLabels
from fedstill.common.sides import Client, Server, soft_labels_of, taught

MOST_BITS = 16
"""Above that single precision has no room for the levels."""


@dataclass(frozen=True, slots=True)
class CFD:
    """Students and a model on the server learn from each other's quantised soft labels.

    Attributes:
        up_bits: b of the clients' labels; 1 for the likeliest class alone.
        down_bits: b of the server's labels.
        distil_epochs: passes of a client over the proxy samples in one round.
        server_epochs: passes of the server.
    """

    name: ClassVar[str] = "cfd"
    paper: ClassVar[str] = "Sattler et al. 2020, https://arxiv.org/abs/2012.00632"
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical", "token-level", "ranking"})
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False
    teaches: ClassVar[bool] = True

    up_bits: int = 1
    down_bits: int = 8
    distil_epochs: int = 2
    server_epochs: int = 5

    def __post_init__(self) -> None:
        for name, bits in (("up", self.up_bits), ("down", self.down_bits)):
            if not 1 <= bits <= MOST_BITS:
                raise ConfigError(f"algorithm.{name}-bits={bits}", f"expected 1 to {MOST_BITS}")
        check.at_least(1, algorithm_distil_epochs=self.distil_epochs)
        check.at_least(1, algorithm_server_epochs=self.server_epochs)

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Learn from the server's answers."""
        client.distil(soft_labels_of(received), epochs=self.distil_epochs)

    def local(self, client: Client) -> SoftLabels:
        """Train on private data, then answer on the proxy samples in `up_bits`."""
        client.train()
        return quantised(client.soft_labels(), self.up_bits)

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        """The server's model learns from the mean answer, and answers in `down_bits`."""
        mean = mean_soft_labels([soft_labels_of(c.knowledge) for c in contributions], space=server.spec.classes)
        return quantised(taught(server, mean, epochs=self.server_epochs), self.down_bits)


def quantised(labels: SoftLabels, bits: int) -> SoftLabels:
    """The nearest labels on a grid of 2^bits levels, each row with a sum of 1; blank rows stay blank.

    Args:
        labels: distributions over classes.
        bits: b >= 1.
    """
    levels = 2**bits - 1
    scaled = labels.values.astype(np.float64) * levels
    steps = np.floor(scaled)
    blank = ~labels.values.any(-1)
    left = np.where(blank, 0, np.rint(levels - steps.sum(-1))).astype(np.int64)
    steps += _ranks(steps - scaled) < left[..., None]
    return replace(labels, values=(steps / levels).astype(np.float32))


def _ranks(keys: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place of each key in its row's order, the first of equal ones first."""
    return np.argsort(np.argsort(keys, axis=-1, kind="stable"), axis=-1, kind="stable")
