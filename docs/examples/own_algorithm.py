"""A method of your own in one file: FedMD whose consensus is a mean weighted by confidence, used without installing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedstill.client.app import client_app
from fedstill.common.ensemble import mean_soft_labels
from fedstill.common.knowledge import Contribution, Knowledge, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.sides import Client, Server, soft_labels_of
from fedstill.common.tasks.image import ImageTask
from fedstill.server.strategy import Distillation
from fedstill.simulations.engine import LocalGrid


@dataclass(frozen=True, slots=True)
class Confident:
    """Students learn from the mean prediction, in which a confident client counts more."""

    name: ClassVar[str] = "confident"
    paper: ClassVar[str] = ""
    outputs: ClassVar[frozenset[str]] = frozenset({"categorical"})
    exchange: ClassVar[str] = "soft-labels"
    homogeneous: ClassVar[bool] = False

    epochs: int = 2

    def start(self, server: Server) -> None:
        """Nothing to tell before the first answers."""

    def absorb(self, client: Client, received: Knowledge) -> None:
        client.distil(soft_labels_of(received), epochs=self.epochs)

    def local(self, client: Client) -> SoftLabels:
        client.train()
        return client.soft_labels()

    def merge(self, server: Server, contributions: Sequence[Contribution]) -> SoftLabels:
        opinions = [soft_labels_of(contribution.knowledge) for contribution in contributions]
        kind = server.spec.kind
        weights = [float(torch.exp(-kind.entropy(torch.from_numpy(one.values)).mean())) for one in opinions]
        return mean_soft_labels(opinions, weights, space=server.spec.classes)


if __name__ == "__main__":
    client = client_app(task=ImageTask(), model="cnn-small", algorithms=[Confident])
    strategy = Distillation(
        algorithm=Confident(epochs=3), task=ImageTask(), model="cnn-small", clients=4, training=Training(batch_size=32)
    )
    result = strategy.start(LocalGrid(client, clients=4), num_rounds=3)
    for step, measures in result.evaluate_metrics_serverapp.items():
        print(f"round {step}: the consensus has an accuracy of {measures['consensus.accuracy']:.1%}")
