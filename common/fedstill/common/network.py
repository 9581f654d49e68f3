"""A network in two parts: a body that reads the inputs, and a head that answers one task.

Tasks of one modality can share a body; what they do not share is the head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedstill.common.errors import UnsupportedError


class Network(nn.Module):
    """Body and head.

    Attributes:
        body: inputs to states: (N, D) for each sample, (N, L, D) for each of L positions, (N, S, L, D) for each of S
            texts, or maps (N, D, height, width).
        head: states to raw outputs (N, …, C).
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Raw outputs (N, …, C)."""
        outputs: Tensor = self.head(self.body(inputs))
        return outputs

    def features(self, inputs: Tensor) -> Tensor:
        """One vector for each sample: (N, D). States of several positions are averaged, without padding."""
        states: Tensor = self.body(inputs)
        if states.dim() == 4 and inputs.dtype.is_floating_point:
            return states.mean((2, 3))
        return mean_state(states.flatten(1, -2)) if states.dim() > 2 else states

    def typed(self, inputs: Tensor) -> Tensor:
        """Inputs in the type of the weights; token ids stay as they are."""
        return inputs.to(next(self.parameters()).dtype) if inputs.is_floating_point() else inputs


class FeatureReader(nn.Module):
    """A network that answers with its features, for the loops that train and predict: the head stays what it is.

    Attributes:
        network: the network.
        projector: reads the features; None for the features themselves.
    """

    def __init__(self, network: Network, projector: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.projector = nn.Identity() if projector is None else projector

    def forward(self, inputs: Tensor) -> Tensor:
        """Features (N, D), as the projector reads them."""
        features: Tensor = self.projector(self.network.features(inputs))
        return features


class Embedded(nn.Module):
    """A network that answers with what its last linear layer reads, and with what that layer makes of it.

    The loops that train and predict so get an embedding (N, D) and raw outputs (N, C) in one pass: (N, D + C).

    Attributes:
        network: the network, whose answer is one row of classes for each sample.
        last: its last layer.
    """

    def __init__(self, network: Network, name: str) -> None:
        super().__init__()
        self.network = network
        self.last = last_layer(network, name)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embedding and raw outputs, side by side: (N, D + C)."""
        read: list[Tensor] = []
        hook = self.last.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        try:
            outputs = self.network(inputs)
        finally:
            hook.remove()
        return torch.cat([read[-1], outputs], dim=-1)


class Pair(nn.Module):
    """Two models that answer the same inputs, for the loop that trains: raw outputs side by side, (N, …, 2 C).

    Attributes:
        first, second: of the same outputs (N, …, C).
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, inputs: Tensor) -> Tensor:
        """Both models' raw outputs."""
        return torch.cat([self.first(inputs), self.second(inputs)], dim=-1)


def last_layer(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer that gives a network's answer.

    Args:
        model: the model.
        name: of its architecture, for the message.

    Raises:
        UnsupportedError: if the features cannot be learnt, or the head does not end in a linear layer.
    """
    layers = list(feature_network(model, name).head.modules())
    if not isinstance(layers[-1], nn.Linear):
        raise UnsupportedError(
            f"model '{name}' with a method that exchanges embeddings",
            "expected a head that ends in a linear layer",
            "choose another model, or a method that sends predictions, such as fedmd",
        )
    return layers[-1]


def feature_network(model: nn.Module, name: str) -> Network:
    """The model as a network whose features can be learnt.

    Args:
        model: the model.
        name: of its architecture, for the message.

    Raises:
        UnsupportedError: if there is nothing but a head.
    """
    if not isinstance(model, Network) or not any(weight.requires_grad for weight in model.body.parameters()):
        raise UnsupportedError(
            f"model '{name}' with a method that exchanges features or relations",
            "expected features that can be learnt, and it has none",
            "choose a model with hidden layers",
        )
    return model


def exporting() -> bool:
    """Whether a model is being traced into a graph, which has one way through it whatever a batch holds."""
    # torch 2.6 cannot tell an export from a compilation.
    told = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(told())


def mean_state(states: Tensor) -> Tensor:
    """Mean over the positions of (…, L, D) states that are no padding (zero vectors): (…, D)."""
    there = (states != 0).any(-1, keepdim=True)
    return states.sum(-2) / there.sum(-2).clamp_min(1)
