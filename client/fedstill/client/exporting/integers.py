"""ONNX models of 8-bit integers, by onnxruntime's own quantisation.

Jacob et al. 2018, https://arxiv.org/abs/1712.05877. "Static": public samples show the range of every activation.
"Dynamic": ranges are found anew in each call. Which one is better was measured (docs/edge.md): static makes networks of
convolutions faster; networks of linear layers, of attention and of recurrent layers are as fast or faster with dynamic
ranges and lose less, for the range of an activation that masks padding leaves nothing for the rest.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fedstill.common.errors import ConfigError
from fedstill.common.task import TaskSpec

_CALIBRATION = 512
"""Samples that show the range of activations; more move it little."""

_BATCH = 64
_STATIC = ["Conv", "MatMul", "Gemm", "Gather", "MaxPool", "Relu"]
"""Operations that compute with integers; conversions around the others cost more than they save."""


def quantise(source: Path, target: Path, samples: NDArray[Any], spec: TaskSpec, *, way: str = "") -> str:
    """Write a model with integer weights beside one of floats.

    Args:
        source: the model of floats.
        target: the file to write.
        samples: prepared inputs of the proxy set.
        spec: the model's task.
        way: "static" or "dynamic"; "" for the one that is better for such a model.

    Returns:
        "static" or "dynamic".

    Raises:
        ConfigError: if onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ModuleNotFoundError as error:
        raise ConfigError(f"package '{error.name}'", "is not installed", "pip install 'fedstill[export]'") from None
    convolutions = any(node.op_type == "Conv" for node in onnx.load(source).graph.node)
    better = "static" if convolutions and spec.modality != "speech" and spec.output != "dense" else "dynamic"
    way = way or better
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as place:
            warnings.simplefilter("ignore")
            simple = Path(place) / "simple.onnx"
            quant_pre_process(source, simple, skip_symbolic_shape=True)
            if way == "static":
                quantization.quantize_static(
                    simple,
                    target,
                    _reader(samples),
                    quant_format=quantization.QuantFormat.QDQ,
                    op_types_to_quantize=_STATIC,
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                )
            else:
                # Convolutions have no fast kernel for a scale for each channel.
                kind = quantization.QuantType.QUInt8 if convolutions else quantization.QuantType.QInt8
                quantization.quantize_dynamic(simple, target, weight_type=kind, per_channel=not convolutions)
    finally:
        logging.disable(before)
    return way


def _reader(samples: NDArray[Any]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    batches = iter([{"inputs": samples[at : at + _BATCH]} for at in range(0, min(len(samples), _CALIBRATION), _BATCH)])

    class Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def get_next(self) -> Any:
            return next(batches, None)

    return Batches()
