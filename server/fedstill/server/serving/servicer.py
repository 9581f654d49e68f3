"""The six calls of the Open Inference Protocol: what is asked is checked, what is wrong has a code and a sentence."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import NoReturn

import grpc
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedstill.common import __version__
from fedstill.common.errors import KnowledgeError, nearest
from fedstill.common.inference import open_inference_pb2 as messages
from fedstill.common.inference.about import INPUT, PROBABILITIES
from fedstill.common.inference.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from fedstill.common.inference.tensors import raw_bytes, read_tensor, typed_contents
from fedstill.server.serving.batching import Batcher, Limits
from fedstill.server.serving.model import OUTPUTS, Served

PLATFORM = "pytorch_fedstill"
"""The protocol's "<project>_<format>"."""

LONGEST_DETAILS = 1000
"""Characters of a sentence: it travels in a header."""


class Inference(GRPCInferenceServiceServicer):
    """Answers for several models.

    Args:
        models: by name, each with the batcher that computes it.
        limits: what is taken on.
    """

    def __init__(self, models: Mapping[str, tuple[Served, Batcher]], limits: Limits) -> None:
        self._models, self._limits = models, limits
        self._places = threading.BoundedSemaphore(limits.requests)
        self._metadata = {name: _metadata(served) for name, (served, _) in models.items()}
        self._ready = True

    def withdraw(self) -> None:
        """Tell whoever asks that nothing is ready any more; requests under way go on."""
        self._ready = False

    # The names of the protocol.

    def ServerLive(  # noqa: N802
        self, request: messages.ServerLiveRequest, context: grpc.ServicerContext
    ) -> messages.ServerLiveResponse:
        """It can take requests: it has just taken one."""
        return messages.ServerLiveResponse(live=True)

    def ServerReady(  # noqa: N802
        self, request: messages.ServerReadyRequest, context: grpc.ServicerContext
    ) -> messages.ServerReadyResponse:
        """Whether every model can be asked."""
        works = all(batcher.works() for _, batcher in self._models.values())
        return messages.ServerReadyResponse(ready=self._ready and works)

    def ModelReady(  # noqa: N802
        self, request: messages.ModelReadyRequest, context: grpc.ServicerContext
    ) -> messages.ModelReadyResponse:
        """Whether a model can be asked; one that is not there cannot."""
        served, batcher = self._models.get(request.name, (None, None))
        there = served is not None and request.version in ("", served.version)
        return messages.ModelReadyResponse(ready=self._ready and there and batcher is not None and batcher.works())

    def ServerMetadata(  # noqa: N802
        self, request: messages.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> messages.ServerMetadataResponse:
        """Name and version; no extensions."""
        return messages.ServerMetadataResponse(name="fedstill", version=__version__)

    def ModelMetadata(  # noqa: N802
        self, request: messages.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> messages.ModelMetadataResponse:
        """What a model reads and gives, and whose it is."""
        served, _ = self._find(request.name, request.version, context)
        return self._metadata[served.name]

    def ModelInfer(  # noqa: N802
        self, request: messages.ModelInferRequest, context: grpc.ServicerContext
    ) -> messages.ModelInferResponse:
        """Outputs for inputs, raw if the inputs were raw."""
        served, batcher = self._find(request.model_name, request.model_version, context)
        with _explained(context):
            inputs = self._inputs(request, served)
            wanted = _wanted(request)
        if not self._places.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._limits.requests} requests wait already: expected fewer at once (try again in a moment)",
            )
        try:
            logits = _computed(batcher, inputs, context)
        finally:
            self._places.release()
        raw = bool(request.raw_input_contents)
        answer = messages.ModelInferResponse(model_name=served.name, model_version=served.version, id=request.id)
        for name in wanted:
            values = (served.soft(logits) if name == PROBABILITIES else logits).numpy()
            told = answer.outputs.add(name=name, datatype="FP32", shape=values.shape)
            if raw:
                answer.raw_output_contents.append(raw_bytes(values, "FP32"))
            else:
                told.contents.CopyFrom(typed_contents(values, "FP32"))
        return answer

    def _find(self, name: str, version: str, context: grpc.ServicerContext) -> tuple[Served, Batcher]:
        if name not in self._models:
            _abort(context, grpc.StatusCode.NOT_FOUND, f"model '{name[:100]}': {nearest(name[:100], self._models)}")
        served, batcher = self._models[name]
        if version not in ("", served.version):
            _abort(
                context,
                grpc.StatusCode.NOT_FOUND,
                f"version '{version[:100]}' of model '{name}': expected '{served.version}' or none",
            )
        return served, batcher

    def _inputs(self, request: messages.ModelInferRequest, served: Served) -> NDArray[np.generic]:
        names = [one.name for one in request.inputs]
        if names != [INPUT]:
            raise KnowledgeError(f"input tensors {names[:5]}", f"expected ['{INPUT}']")
        told, raw = request.inputs[0], request.raw_input_contents
        if told.datatype != served.input_type:
            raise KnowledgeError(
                f"tensor '{INPUT}' of datatype '{told.datatype[:20]}'", f"expected {served.input_type}"
            )
        if raw and (len(raw) != 1 or told.HasField("contents")):
            raise KnowledgeError(
                f"{len(raw)} raw contents{' beside typed ones' if told.HasField('contents') else ''}",
                "expected one for each input tensor, or typed contents alone",
            )
        if list(told.shape[:1]) > [self._limits.rows]:
            raise KnowledgeError(
                f"{told.shape[0]} rows", f"expected at most {self._limits.rows} in a request", "ask several times"
            )
        inputs = read_tensor(INPUT, told.datatype, told.shape, contents=told.contents, raw=raw[0] if raw else None)
        served.check(inputs)
        return inputs


def _wanted(request: messages.ModelInferRequest) -> Sequence[str]:
    """The outputs that are asked for, each once; all of them if none is named."""
    names = list(dict.fromkeys(one.name for one in request.outputs))
    for name in names:
        if name not in OUTPUTS:
            raise KnowledgeError(
                f"output '{name[:100]}'", "expected one that the model has", nearest(name[:100], OUTPUTS)
            )
    return names or OUTPUTS


def _computed(batcher: Batcher, inputs: NDArray[np.generic], context: grpc.ServicerContext) -> Tensor:
    """What the batcher makes of inputs; whoever does not wait for it any more keeps it from being computed."""
    remaining = context.time_remaining()
    deadline = time.monotonic() + remaining if remaining is not None else float("inf")
    answer: Future[Tensor] = batcher.submit(inputs, deadline=deadline)

    def give_up() -> None:
        answer.cancel()

    if not context.add_callback(give_up):
        give_up()
    try:
        return answer.result()
    except CancelledError:
        if time.monotonic() < deadline and context.is_active():
            _abort(context, grpc.StatusCode.UNAVAILABLE, "the server stops: ask another one, or later")
        _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the rows were computed")
    except RuntimeError as error:
        _abort(context, grpc.StatusCode.INTERNAL, f"the model failed: {error}")


@contextmanager
def _explained(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except KnowledgeError as error:
        _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
    context.abort(code, details[:LONGEST_DETAILS])
    raise AssertionError("abort raises")


def _metadata(served: Served) -> messages.ModelMetadataResponse:
    told = messages.ModelMetadataResponse(
        name=served.name, versions=[served.version], platform=PLATFORM, properties=served.properties()
    )
    told.inputs.add(name=INPUT, datatype=served.input_type, shape=(-1, *served.spec.input_shape))
    for name in OUTPUTS:
        told.outputs.add(name=name, datatype="FP32", shape=(-1, *served.output_shape))
    return told
