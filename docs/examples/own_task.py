"""A task of your own: one file that reads your data. Here, three kinds of vibration told from 32 sensor readings."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from fedstill.client.app import client_app
from fedstill.common.algorithms.fedmd import FedMD
from fedstill.common.data.classes import set_aside
from fedstill.common.data.scaling import standardise_rows
from fedstill.common.labels import Classes
from fedstill.common.learning import Training
from fedstill.common.metrics import accuracy
from fedstill.common.seeding import torch_rng
from fedstill.common.task import Examples, TaskData
from fedstill.server.strategy import Distillation
from fedstill.simulations.engine import LocalGrid

CLASSES = ("steady", "wobbling", "knocking")


@dataclass(frozen=True, slots=True)
class Vibration:
    """Tell what is wrong with a machine from 32 readings of its vibration."""

    name: ClassVar[str] = "vibration"
    output: ClassVar[str] = "categorical"
    modality: ClassVar[str] = "tabular"

    machines: int = 1500

    def load(self, folder: Path | None) -> TaskData:
        """Your reader: the same examples in the same order on every side."""
        rng = torch_rng(0, "vibration")
        targets = torch.randint(len(CLASSES), (self.machines,), generator=rng)
        waves = torch.sin(torch.arange(32) * (1.0 + targets[:, None]) / 4)
        readings = waves + torch.randn(self.machines, 32, generator=rng)
        pool, test = set_aside(Examples(readings, targets), 0.2)
        return TaskData(pool, CLASSES, test)

    def prepare(self, inputs: Tensor, proxy: Tensor) -> Tensor:
        return standardise_rows(inputs, proxy)

    def measure(self, logits: Tensor, targets: Tensor, classes: Classes) -> dict[str, float]:
        return {"accuracy": accuracy(logits, targets)}


if __name__ == "__main__":
    strategy = Distillation(
        algorithm=FedMD(), task=Vibration(), model="mlp-small", clients=4, training=Training(epochs=3, batch_size=32)
    )
    result = strategy.start(LocalGrid(client_app(task=Vibration(), model="mlp-small"), clients=4), num_rounds=2)
    alone, final = (result.train_metrics_clientapp[step] for step in (0, 3))
    print(f"accuracy {alone['alone.accuracy']:.1%} alone, {final['final.accuracy']:.1%} after the run")
