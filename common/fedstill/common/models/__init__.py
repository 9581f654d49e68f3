"""Models by name, FAMILY-SIZE: one file for each backbone family, small to large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from torch import nn

from fedstill.common.errors import ConfigError, UnsupportedError, nearest
from fedstill.common.network import Network, feature_network, last_layer
from fedstill.common.outputs import output_kind
from fedstill.common.registry import MODELS
from fedstill.common.seeding import torch_seeded
from fedstill.common.task import TaskSpec


class ModelFamily(Protocol):
    """A backbone in several sizes: a class without state, one file in `models/`.

    Attributes:
        name: by which it is found; the file's name.
        paper: authors, year, address; "" if there is none.
        modalities: what it can read ("image", "text", "tabular", "speech").
        sizes: a line on each size, from small to large; empty where anything may stand for a size (a path, say), and
            the name has no "-".

    A family may say in a further class variable `outputs` which output kinds it can give; without it, those that have
    no positions.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    modalities: ClassVar[frozenset[str]]
    sizes: ClassVar[Mapping[str, str]]

    def build(self, size: str, spec: TaskSpec) -> Network:
        """A new model: inputs (N, *spec.input_shape) to raw outputs (N, *spec.positions, len(spec.classes)).

        Torch's global generator is seeded around the call.

        Raises:
            UnsupportedError: if inputs of that shape are too small for it.
        """


def build_model(name: str, spec: TaskSpec, *, seed: int) -> Network:
    """A new model with random weights (those of its folder for "hf-PATH"); the same seed gives the same weights.

    Args:
        name: FAMILY-SIZE, such as "cnn-small", or "hf-PATH".
        spec: the task: its input shape, and one output for each of its classes.
        seed: of the weights.

    Raises:
        ConfigError: if there is no such model; the message names the nearest.
        UnsupportedError: if the family cannot read the task's inputs, or give its outputs.
    """
    family, size = _family_and_size(name)
    if family is None or (family.sizes and size not in family.sizes):
        raise ConfigError(f"model '{name}'", "expected a known model", nearest(name, model_names()))
    if spec.modality not in family.modalities:
        raise UnsupportedError(
            f"model '{name}' for task '{spec.name}' of modality '{spec.modality}'",
            f"expected one of {', '.join(sorted(family.modalities))}",
            f"such as {', '.join(model_names(spec.modality))}",
        )
    if not gives(family, spec.output):
        raise UnsupportedError(
            f"model '{name}' for task '{spec.name}' of output kind '{spec.output}'",
            "expected a model that can give such outputs",
            f"such as {', '.join(model_names(spec.modality, spec.output)) or 'none that is installed'}",
        )
    if spec.modality == "text" and spec.vocabulary < 2:
        raise UnsupportedError(
            f"task '{spec.name}' with a vocabulary of {spec.vocabulary}",
            "expected at least 2 (0 is padding)",
            "a text task has to set TaskData.vocabulary",
        )
    with torch_seeded(seed, "weights"):
        return family.build(size, spec)


def _family_and_size(name: str) -> tuple[ModelFamily | None, str]:
    first, _, rest = name.partition("-")
    if rest and first in MODELS.names() and not MODELS.get(first).sizes:
        return MODELS.get(first)(), rest
    family_name, _, size = name.rpartition("-")
    return (MODELS.get(family_name)() if family_name in MODELS.names() else None), size


def gives(family: type[ModelFamily] | ModelFamily, output: str) -> bool:
    """Whether a family can give outputs of that kind."""
    told: frozenset[str] | None = getattr(family, "outputs", None)
    return not output_kind(output).has_positions if told is None else output in told


def check_model(name: str, spec: TaskSpec, *, features: bool = False) -> None:
    """Refuse a model that cannot be built, without making its weights.

    Args:
        name: as for `build_model`.
        spec: as for `build_model`.
        features: whether it has to have features that can be learnt.

    Raises:
        ConfigError, UnsupportedError: as `build_model`; or if there is nothing but a head.
    """
    with torch.device("meta"):
        model = build_model(name, spec, seed=0)
    if features:
        feature_network(model, name)


def embedding_width(name: str, spec: TaskSpec) -> int:
    """How many features a model's last layer reads, without making its weights.

    Raises:
        ConfigError, UnsupportedError: as `build_model`; or if there is no such layer.
    """
    with torch.device("meta"):
        model = build_model(name, spec, seed=0)
    return last_layer(model, name).in_features


def model_names(modality: str = "", output: str = "") -> tuple[str, ...]:
    """Every model that can read the modality and give the output kind ("" for any), by family, from small to large.

    Imports them all.
    """
    return tuple(
        f"{name}-{size}"
        for name, family in MODELS.all().items()
        if (not modality or modality in family.modalities) and (not output or gives(family, output))
        for size in family.sizes
    )


def parameter_count(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
