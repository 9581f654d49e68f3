"""Training and prediction of one torch model: the two loops that everything else is made of.

Batches are slices of whole tensors (no DataLoader: workers cost more than they give at these sizes), convolutions run
in channels-last layout (1.5 × on a CPU), and bf16 is an option (2 ×). Both loops are deterministic for a given seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fedstill.common import check
from fedstill.common.seeding import torch_rng, torch_seeded
from fedstill.common.stepping import SGD, Adam, Optimizer

Loss = Callable[..., Tensor]
"""(logits, *targets of the batch) → scalar."""

Run = Callable[[Tensor], Tensor]
"""inputs (N, …) → raw outputs (N, …, C)."""

Regulariser = Callable[[Run, Tensor], Tensor]
"""(model, inputs of the batch) → scalar that is added to the loss."""


@dataclass(frozen=True, slots=True)
class Training:
    """How a model is trained.

    Attributes:
        epochs: passes over a client's private data in one round.
        batch_size: samples a step.
        learning_rate: of the optimiser.
        optimizer: "adam" or "sgd" (momentum 0.9).
        weight_decay: L2 penalty.
        precision: "fp32", or "bf16" (weights, activations and gradients; the optimiser's weights stay fp32).
        channels_last: memory layout of images.
        consistency: weight of the divergence between the answers to two random views of a batch; 0 for none.
        mirror: a view of an image may be mirrored; not for digits or letters.
        adaptive: clients weigh the shared knowledge by what it does to their own held-out examples.
        warmup: further passes in the first round: clients that know nothing yet spoil each other.
    """

    epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    consistency: float = 0.0
    mirror: bool = False
    adaptive: bool = False
    warmup: int = 0

    def __post_init__(self) -> None:
        check.at_least(1, training_epochs=self.epochs, training_batch_size=self.batch_size)
        check.positive(training_learning_rate=self.learning_rate)
        check.at_least(0, training_weight_decay=self.weight_decay, training_consistency=self.consistency)
        check.at_least(0, training_warmup=self.warmup)
        check.one_of(("adam", "sgd"), training_optimizer=self.optimizer)
        check.one_of(("fp32", "bf16"), training_precision=self.precision)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside the block.

    Two on a busy core are ten times slower, and sums depend on their number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    model: nn.Module,
    inputs: Tensor,
    targets: Sequence[Tensor],
    loss: Loss,
    *,
    training: Training,
    epochs: int,
    seed: int,
    regulariser: Regulariser | None = None,
) -> float:
    """Train a model in place with a fresh optimiser.

    Args:
        model: float32 weights.
        inputs: (N, …).
        targets: any number of tensors of length N, given to `loss` batch by batch.
        loss: of (logits, *targets).
        training: batch size, optimiser, precision.
        epochs: passes over the data; 0 does nothing.
        seed: of the order of samples and of dropout.
        regulariser: a loss of its own on each batch, or None.

    Returns:
        Mean loss of the last epoch, with the regulariser's; NaN if nothing was trained.
    """
    count = len(inputs)
    mean = float("nan")
    if not count or not epochs:
        return mean
    order = torch_rng(seed, "order")
    inputs = arranged(inputs, training)
    with computing(model, training) as (run, step), torch_seeded(seed, "dropout"):
        model.train()
        for _ in range(epochs):
            total = torch.zeros((), dtype=torch.float64)
            rows = torch.randperm(count, generator=order)
            for batch in torch.split(rows, training.batch_size):
                value = loss(run(inputs[batch]), *(target[batch] for target in targets))
                if regulariser is not None:
                    value = value + regulariser(run, inputs[batch])
                step(value)
                total += value.detach() * len(batch)
            mean = float(total) / count
    return mean


@torch.no_grad()  # not inference_mode: a model whose layout or precision changes in it could not be trained any more
def predict(model: nn.Module, inputs: Tensor, *, training: Training, batch_size: int = 128) -> Tensor:
    """Raw outputs in float32: (N, …, C). Leaves the model in evaluation mode.

    Batches of 128 stay in a core's cache: on a CPU small convolutional networks are up to twice as fast as with 512.
    """
    inputs = arranged(inputs, training)
    with computing(model, training) as (run, _):
        model.eval()
        return torch.cat([run(batch) for batch in torch.split(inputs, batch_size)])


Step = Callable[[Tensor], None]


@contextmanager
def computing(model: nn.Module, training: Training) -> Iterator[tuple[Run, Step]]:
    """Forward pass and optimiser step in the wanted layout and precision; the model is as before afterwards."""
    if training.channels_last:
        for weight in model.parameters():
            if weight.dim() == 4:
                # Not `contiguous`: with one input channel it takes either layout for the other, and convolutions follow
                # the strides.
                weight.data = weight.data.to(memory_format=torch.channels_last)
    if training.precision == "bf16":
        yield from _in_bf16(model, training)
    else:
        optimizer = _optimizer(list(model.parameters()), training) if torch.is_grad_enabled() else None

        def step(value: Tensor) -> None:
            if optimizer is not None:
                optimizer.zero_grad()
                torch.autograd.backward(value)
                optimizer.step()

        yield model, step


def _in_bf16(model: nn.Module, training: Training) -> Iterator[tuple[Run, Step]]:
    # bf16 keeps 8 bits of a number: small updates would vanish, so the optimiser works on fp32 copies of the weights.
    weights: list[Tensor] = list(model.parameters())
    masters = [weight.detach().clone().requires_grad_() for weight in weights]
    buffers = [value.clone() for value in model.buffers()]
    optimizer = _optimizer(masters, training) if torch.is_grad_enabled() else None
    model.to(torch.bfloat16)

    def run(inputs: Tensor) -> Tensor:
        outputs: Tensor = model(inputs.to(torch.bfloat16) if inputs.is_floating_point() else inputs)
        return outputs.float()

    def step(value: Tensor) -> None:
        if optimizer is None:
            return
        torch.autograd.backward(value)
        for master, weight in zip(masters, weights, strict=True):
            master.grad, weight.grad = None if weight.grad is None else weight.grad.float(), None
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)

    try:
        yield run, step
    finally:
        rounded = [torch.equal(now, before.to(now.dtype)) for now, before in zip(model.buffers(), buffers, strict=True)]
        model.float()
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
            # A buffer that training did not touch (a constant, say) keeps the bits that bf16 has not.
            for now, before, same in zip(model.buffers(), buffers, rounded, strict=True):
                if same:
                    now.copy_(before)


def _optimizer(weights: list[Tensor], training: Training) -> Optimizer:
    kind = SGD if training.optimizer == "sgd" else Adam
    return kind(weights, learning_rate=training.learning_rate, weight_decay=training.weight_decay)


def arranged(inputs: Tensor, training: Training) -> Tensor:
    """Inputs in the memory layout in which they are computed."""
    if inputs.dim() == 4 and training.channels_last:
        return inputs.to(memory_format=torch.channels_last)
    return inputs
