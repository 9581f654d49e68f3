"""Students of 8-bit integers: torch's own post-training quantisation, and what it saves.

Jacob et al. 2018, https://arxiv.org/abs/1712.05877: weights and activations are integers times a scale, with a scale
for each output channel of the weights. Models of images and tables compute with integers throughout ("static": public
samples show the range of every activation). Models of texts keep float activations ("dynamic": embeddings and
the weights of linear layers are integers; the other layers stay as they are).

Torch calls `torch.ao.quantization` deprecated in favour of torchao, a package of its own; it is what torch itself has.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.fx.proxy import TraceError

from fedstill.common.errors import UnsupportedError

_CALIBRATION = 512
"""Samples that show the range of activations; more move it little."""


def quantised(model: nn.Module, samples: Tensor) -> nn.Module:
    """A copy of a model with 8-bit weights; it predicts and cannot be trained. The model stays as it is.

    Args:
        model: float32 weights, on the CPU.
        samples: inputs (N, …) such as the proxy set's, ready for the model; floats, or int64 token ids.

    Raises:
        UnsupportedError: if this torch has no quantisation, no integer arithmetic for this processor, or cannot follow
            this model (speech and translation, whose way depends on the input).
    """
    if torch.backends.quantized.engine == "none":
        raise UnsupportedError("int8 on this processor", "expected one for which torch has integer arithmetic")
    plain = copy.deepcopy(model).eval()
    try:
        with _quiet(), torch.no_grad():
            small = _static(plain, samples[:_CALIBRATION]) if samples.is_floating_point() else _dynamic(plain)
            # The first call of each integer operation warns, so it is made here.
            small(samples[:1])
    except (TypeError, RuntimeError, TraceError) as error:
        raise UnsupportedError(
            "int8 of this model by torch itself", f"cannot be made: {error}", "fedstill export --int8 can make it"
        ) from None
    except ImportError as error:
        raise UnsupportedError(
            f"int8 with torch {torch.__version__}", f"expected torch.ao.quantization: {error}", "install torch 2.13"
        ) from None
    return small


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all the numbers that a model holds: weights with their scales and zero points, and buffers."""
    return sum(_bytes(value) for value in model.state_dict().values())


@torch.no_grad()
def latency(model: nn.Module, sample: Tensor, *, calls: int = 200) -> float:
    """Median seconds of a call with one sample (1, …), after a tenth as many calls that do not count."""
    times = []
    model.eval()
    for number in range(calls + calls // 10):
        begun = time.perf_counter()
        model(sample)
        if number >= calls // 10:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def _static(model: nn.Module, samples: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    mapping = get_default_qconfig_mapping(torch.backends.quantized.engine)
    watched = prepare_fx(model, mapping, (samples[:1],))
    watched(samples)
    small: nn.Module = convert_fx(watched)
    return small


def _dynamic(model: nn.Module) -> nn.Module:
    from torch.ao.quantization import default_dynamic_qconfig, float_qparams_weight_only_qconfig, quantize_dynamic

    small: nn.Module = quantize_dynamic(  # type: ignore[no-untyped-call]
        model,
        {
            nn.Linear: default_dynamic_qconfig,
            nn.Embedding: float_qparams_weight_only_qconfig,
            nn.EmbeddingBag: float_qparams_weight_only_qconfig,
        },
    )
    return small


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, UserWarning):
            warnings.filterwarnings("ignore", category=kind)
        yield


def _bytes(value: object) -> int:
    if isinstance(value, tuple | list):
        return sum(_bytes(part) for part in value)
    if not isinstance(value, Tensor):
        return 0
    scales = 0
    if value.is_quantized and value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
        scales = _bytes(value.q_per_channel_scales()) + _bytes(value.q_per_channel_zero_points())
    return value.numel() * value.element_size() + scales
