"""A model as one file, and the file as something that answers: ONNX, or torch.export's own format."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedstill.client.predicting.session import open_session
from fedstill.common.errors import ConfigError, UnsupportedError

Run = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Prepared inputs (N, …) to raw outputs (N, …, C)."""

EXPORTERS: dict[str, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}
"""Formats, and the name of the file."""


def write_graph(model: nn.Module, samples: Tensor, path: Path, *, form: str) -> None:
    """Write a model in evaluation mode; the number of samples of a call is free.

    Args:
        model: of float32 weights.
        samples: prepared inputs (N, …), one at least.
        path: the file.
        form: one of EXPORTERS.

    Raises:
        UnsupportedError: if the model does what a graph cannot hold.
        ConfigError: if a package is not installed.
    """
    try:
        with _quiet(), torch.no_grad():
            # Two samples: an axis of one would be taken for a constant.
            (_write_onnx if form == "onnx" else _write_torch)(model, samples[[0, -1]], path)
    except ModuleNotFoundError as error:
        raise ConfigError(f"package '{error.name}'", "is not installed", "pip install 'fedstill[export]'") from None
    except Exception as error:  # exporters raise whatever the model's operations raise
        raise UnsupportedError(
            f"model '{type(model).__name__}' as {form}",
            f"cannot be traced into a graph: {_first_line(error)}",
            "a model's way must not depend on its inputs; see fedstill.common.network.exporting",
        ) from error


def open_graph(path: Path, *, form: str) -> Run:
    """A file as something that answers, on one thread.

    Raises:
        ConfigError, DataError: as `open_session`.
    """
    if form == "onnx":
        session = open_session(path)
        return lambda inputs: session.run(None, {"inputs": inputs})[0]
    module = torch.export.load(path).module()

    def run(inputs: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            outputs: NDArray[np.float32] = module(torch.from_numpy(inputs)).numpy()
        return outputs

    return run


def _write_onnx(model: nn.Module, samples: Tensor, path: Path) -> None:
    import onnxscript  # noqa: F401  # torch.onnx names it less clearly

    program = torch.onnx.export(
        model,
        (samples,),
        dynamo=True,
        input_names=["inputs"],
        output_names=["outputs"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    proto: Any = program.model_proto if program is not None else None
    _strip(proto.graph)
    for function in proto.functions:
        _strip(function)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _strip(graph: Any) -> None:
    """Take off what only tells of the source: paths of this machine, and more bytes than a small model's weights."""
    for part in (*graph.node, *graph.value_info, *getattr(graph, "input", ()), *getattr(graph, "output", ())):
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        if hasattr(part, "doc_string"):
            part.doc_string = ""
    if hasattr(graph, "initializer"):
        for one in graph.initializer:
            del one.metadata_props[:]
    del graph.value_info[:]


def _write_torch(model: nn.Module, samples: Tensor, path: Path) -> None:
    program = torch.export.export(model, (samples,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False)
    torch.export.save(program, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what exporters tell of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).strip().splitlines()
    return (lines[0] if lines else type(cause).__name__).replace(os.sep * 2, os.sep)
