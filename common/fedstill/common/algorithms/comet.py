"""COMET: clients whose predictions are alike form a cluster, and learn from its mean beside their own data.

Cho et al. 2023, https://doi.org/10.1109/JSTSP.2022.3231527; preprint (PerFed-CKT) https://arxiv.org/abs/2109.08119.
With client k's probabilities p_k(x) on proxy sample x:

    merge    clusters ← k-means of the vectors (p_k(x) for all x)
             q_j(x) = mean of p_k(x) over the clients k of cluster j
    local    student k ← argmin CE(y, p) on private data + λ · KL(q_j ‖ p) on proxy samples,   j the nearest cluster

The server sends a client the mean of its cluster alone, where the paper sends all of them and the client chooses: the
choice is the same. The server remembers everybody's last answer, which a client that is away would give again, and so
finds the nearest cluster for it too. A client that has not answered yet hears the mean over all.

Deviations: probabilities at a temperature are exchanged and clustered, in place of raw scores; the last answer of a
client that is away is compared on the samples that it has in common with the clusters, fewer if each round draws its
own. A class that a client lacks has the others' mean in its vector. The paper's text was not at hand: the loss and the
weight λ = 1 are those of the re-implementation in SCARLET's code, which clusters each sample for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedstill.common import check
from fedstill.common.ensemble import mean_soft_labels, stacked
from fedstill.common.keeping import forget, keep, kept
from fedstill.common.knowledge import Contribution, Form, Knowledge, Personal, SoftLabels
from fedstill.common.labels import Classes
from fedstill.common.seeding import numpy_rng
from fedstill.common.sides import Client, Server, soft_labels_of

_TOLD, _SAID = "comet.told", "comet.said."

_TRIES, _ROUNDS = 10, 100
"""Of k-means: beginnings, of which the best end counts, and steps of each."""


@dataclass(frozen=True, slots=True)
class COMET:
    """Students learn from the mean prediction of the clients that predict like them, beside their own data.

    Attributes:
        clusters: how many; fewer where fewer clients answer.
        weight: λ of the cluster's mean beside the task's own loss.
        temperature: of the exchanged probabilities.
    """

    name: ClassVar[str] = "comet"
    paper: ClassVar[str] = "Cho et al. 2023, https://doi.org/10.1109/JSTSP.2022.3231527"
    outputs: ClassVar[frozenset[str]] = frozenset(
        {"categorical", "multi-label", "ranking", "regression", "token-level"}
    )
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False

    clusters: int = 2
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check.at_least(1, algorithm_clusters=self.clusters)
        check.positive(algorithm_weight=self.weight)
        check.positive("soft labels are softmax(z / temperature)", algorithm_temperature=self.temperature)

    @property
    def asked(self) -> tuple[Form, float]:
        """Form and temperature of the clients' answers."""
        return "probabilities", self.temperature

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        """Keep the cluster's mean, for the steps on private data."""
        keep(client.memory, _TOLD, soft_labels_of(received))

    def local(self, client: Client) -> SoftLabels:
        """Train on private data, beside it on the cluster's mean, then answer on the proxy samples."""
        told = kept(client.memory, _TOLD)
        if told is None:
            client.train()
        else:
            client.train_beside(soft_labels_of(told), weight=self.weight)
            forget(client.memory, _TOLD)
        return client.soft_labels(temperature=self.temperature)

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> Personal:
        """The mean of each cluster for those who are in it or near it; in common they have the mean over all."""
        opinions = [soft_labels_of(one.knowledge) for one in contributions]
        space = server.spec.classes
        places = clustered(vectors(opinions, space=space), self.clusters, seed=server.seed)
        means = [
            mean_soft_labels([one for one, own in zip(opinions, places, strict=True) if own == place], space=space)
            for place in range(max(places) + 1)
        ]
        own: dict[str, Knowledge] = {}
        for said, opinion, place in zip(contributions, opinions, places, strict=True):
            own[said.client] = means[place]
            keep(server.memory, _SAID + said.client, opinion)
        for client in server.clients:
            last = kept(server.memory, _SAID + client.name)
            nearest = None if last is None else nearest_of(means, soft_labels_of(last), space=space)
            if client.name not in own and nearest is not None:
                own[client.name] = nearest
        return Personal(mean_soft_labels(opinions, space=space), own)


def vectors(opinions: Sequence[SoftLabels], *, space: Classes) -> NDArray[np.float64]:
    """One row for each opinion: its values on all samples and classes; where it has none, the mean of those that have.

    Args:
        opinions: as for `mean_soft_labels`.
        space: the task's label space.
    """
    _, _, values, there = stacked(opinions, space=space)
    known = np.broadcast_to(there, values.shape)
    mean = values.sum(0, dtype=np.float64) / np.maximum(known.sum(0), 1)
    return np.where(known, values, mean).reshape(len(opinions), -1)


def clustered(rows: NDArray[np.float64], clusters: int, *, seed: int) -> list[int]:
    """The cluster of each row by k-means (Lloyd's steps from k-means++, the best of ten tries), numbered from 0.

    Args:
        rows: (K, D).
        clusters: at most so many; none is empty.
        seed: of the beginnings.
    """
    chance = numpy_rng(seed, "clusters")
    tries = [_lloyd(rows, _beginning(rows, clusters, chance)) for _ in range(_TRIES)]
    _, best = min(tries, key=lambda one: one[0])
    # Numbers in the order in which clusters appear, without gaps.
    order = list(dict.fromkeys(best.tolist()))
    return [order.index(place) for place in best.tolist()]


def nearest_of(means: Sequence[SoftLabels], opinion: SoftLabels, *, space: Classes) -> SoftLabels | None:
    """The mean with the least mean square distance on the samples and classes in common; None if there are none."""
    _, _, values, there = stacked([opinion, *means], space=space)
    both = np.broadcast_to(there[:1] & there[1:], values[1:].shape)
    counts = both.reshape(len(means), -1).sum(1)
    squares = ((values[1:] - values[:1]) ** 2 * both).reshape(len(means), -1).sum(1, dtype=np.float64)
    distances = np.divide(squares, counts, out=np.full(len(means), np.inf), where=counts > 0)
    return means[int(distances.argmin())] if np.isfinite(distances).any() else None


def _beginning(rows: NDArray[np.float64], clusters: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """Centres far from each other (k-means++, Arthur & Vassilvitskii 2007, section 2.2); no two are equal."""
    centres = rows[[int(chance.integers(len(rows)))]]
    while len(centres) < clusters:
        distances = _squares(rows, centres).min(1)
        if not distances.sum() > 0:
            break
        centres = np.vstack([centres, rows[int(chance.choice(len(rows), p=distances / distances.sum()))]])
    return centres


def _lloyd(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> tuple[float, NDArray[np.intp]]:
    """The sum of squared distances and the place of each row, when no row moves any more."""
    places = _squares(rows, centres).argmin(1)
    for _ in range(_ROUNDS):
        centres = np.stack([rows[places == place].mean(0) for place in np.unique(places)])
        moved = _squares(rows, centres).argmin(1)
        if np.array_equal(moved, places):
            break
        places = moved
    return float(_squares(rows, centres).min(1).sum()), places


def _squares(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.stack([((rows - centre) ** 2).sum(1) for centre in centres], axis=1)
    return found
