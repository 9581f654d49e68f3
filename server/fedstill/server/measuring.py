"""What is measured in a step: the server's model, the consensus, and what the clients tell of themselves."""

from __future__ import annotations

import torch

from fedstill.common.knowledge import Knowledge, SoftLabels
from fedstill.common.labels import positions
from fedstill.common.messages import Metrics
from fedstill.common.metrics import class_accuracy
from fedstill.common.sides import Server
from fedstill.server.holdings import ServerTask


def measure(own: ServerTask, side: Server, consensus: Knowledge | None, *, with_model: bool) -> Metrics:
    """Measures of the server's model on the test samples, and of the consensus on the proxy samples."""
    found: Metrics = {}
    if with_model and own.test is not None and len(own.test):
        logits = side.predict(own.test.inputs)
        found |= own.task.measure(logits, own.test.targets, own.spec.classes)
        if own.spec.output == "categorical" and logits.dim() == 2:
            found["class-accuracy"] = class_accuracy(logits, own.test.targets, len(own.spec.classes))
    if isinstance(consensus, SoftLabels) and own.proxy_targets is not None:
        shape = (*consensus.values.shape[:-1], len(own.spec.classes))
        scores = torch.full(shape, float(consensus.values.min()) - 1.0)
        scores[..., torch.from_numpy(positions(consensus.classes, own.spec.classes))] = torch.from_numpy(
            consensus.values
        )
        targets = own.proxy_targets[torch.from_numpy(consensus.samples)]
        measured = own.task.measure(scores, targets, own.spec.classes)
        found |= {f"consensus.{key}": value for key, value in measured.items()}
    return found
