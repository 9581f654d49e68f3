"""A client of any endpoint of the Open Inference Protocol (ours, Triton, KServe): one question at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from fedstill.common import check
from fedstill.common.errors import ConfigError, KnowledgeError, Reason, RunError
from fedstill.common.inference import open_inference_pb2 as messages
from fedstill.common.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from fedstill.common.inference.tensors import raw_bytes, read_tensor

log = logging.getLogger(__name__)

LARGEST_MESSAGE = 256 * 1024 * 1024
"""Bytes of an answer that is accepted; gRPC's own limit of 4 MiB is less than a batch of images."""

_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
"""A later try may do: the server is starting, its queue is full, it is slow."""

_CURES = {
    grpc.StatusCode.UNAVAILABLE: "start it, or mend the address and the TLS files",
    grpc.StatusCode.DEADLINE_EXCEEDED: "raise the time limit, or ask about fewer rows at once",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "ask about fewer rows at once, or raise the server's limits",
    grpc.StatusCode.UNIMPLEMENTED: "name the gRPC port of a server that speaks the Open Inference Protocol",
}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a client.

    Attributes:
        authority: certificates that the server's is checked against; "" for the machine's own, and for no TLS at all
            where the other two are "" too.
        certificate, key: of this client, for a server that asks for one; "" for none.
        required: use TLS though no file is named.
    """

    authority: str = ""
    certificate: str = ""
    key: str = ""
    required: bool = False

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ConfigError(
                f"certificate='{self.certificate}' with key='{self.key}'", "expected both or none", "name both files"
            )

    def credentials(self) -> grpc.ChannelCredentials | None:
        """What gRPC makes of them; None for no TLS.

        Raises:
            ConfigError: if a file cannot be read.
        """
        if not (self.authority or self.certificate or self.required):
            return None
        return grpc.ssl_channel_credentials(
            root_certificates=pem(self.authority) if self.authority else None,
            private_key=pem(self.key) if self.key else None,
            certificate_chain=pem(self.certificate) if self.certificate else None,
        )


def pem(path: str | Path) -> bytes:
    """A PEM file's content.

    Raises:
        ConfigError: if it cannot be read, or is none.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"file '{path}'", f"cannot be read: {error.strerror}", "name a PEM file") from None
    if b"-----BEGIN " not in content:
        raise ConfigError(f"file '{path}'", "expected PEM ('-----BEGIN …')", "convert it with openssl")
    return content


class Endpoint:
    """A channel to a server, to be closed: use it in a `with`.

    Args:
        address: "host:port".
        tls: PEM files.
        timeout: seconds for one question.
        retries: further tries after a failure that may pass.
        backoff: seconds before the first of them; doubled each time.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: TlsFiles | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        backoff: float = 0.5,
    ) -> None:
        check.positive(timeout=timeout)
        check.at_least(0, retries=retries)
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", LARGEST_MESSAGE)]
        credentials = (tls or TlsFiles()).credentials()
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._address, self._timeout, self._retries, self._backoff = address, timeout, retries, backoff

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def metadata(self, model: str, version: str = "") -> messages.ModelMetadataResponse:
        """What a model reads and gives, and what its server says of it.

        Raises:
            ConfigError: if there is no such model.
            RunError: if the server cannot be reached, or refuses.
        """
        request = messages.ModelMetadataRequest(name=model, version=version)
        told: messages.ModelMetadataResponse = self._ask(self._stub.ModelMetadata, request, f"model '{model}'")
        return told

    def infer(
        self, model: str, inputs: Mapping[str, tuple[str, NDArray[np.generic]]], output: str, *, version: str = ""
    ) -> NDArray[np.generic]:
        """One output for inputs.

        Args:
            model: its name.
            inputs: by name: the datatype, and an array of which it is made.
            output: the name of the output.
            version: of the model; "" leaves it to the server.

        Raises:
            ConfigError: if there is no such model.
            KnowledgeError: if the answer is malformed.
            RunError: if the server cannot be reached, or refuses.
        """
        request = messages.ModelInferRequest(model_name=model, model_version=version)
        request.outputs.add(name=output)
        for name, (datatype, array) in inputs.items():
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(raw_bytes(array, datatype))
        answer: messages.ModelInferResponse = self._ask(self._stub.ModelInfer, request, f"model '{model}'")
        names = [one.name for one in answer.outputs]
        if output not in names:
            raise KnowledgeError(f"answer with outputs {names[:5]}", f"expected '{output}'", reason=Reason.MALFORMED)
        place = names.index(output)
        raw = answer.raw_output_contents
        if raw and len(raw) != len(names):
            raise KnowledgeError(f"answer with {len(raw)} raw outputs", f"expected {len(names)}")
        told = answer.outputs[place]
        return read_tensor(output, told.datatype, told.shape, contents=told.contents, raw=raw[place] if raw else None)

    def _ask(self, method: Callable[..., Any], request: Any, what: str) -> Any:
        for number in range(self._retries + 1):
            try:
                return method(request, timeout=self._timeout)
            except grpc.RpcError as error:
                code, details = error.code(), error.details() or ""
                if code not in _AGAIN or number == self._retries:
                    raise self._told(what, code, details) from None
                log.warning("%s at %s: %s (%s); trying again", what, self._address, code.name, details[:200])
                time.sleep(self._backoff * 2**number)
        raise AssertionError("the last try returns or raises")

    def _told(self, what: str, code: grpc.StatusCode, details: str) -> ConfigError | RunError:
        if code is grpc.StatusCode.NOT_FOUND:
            return ConfigError(f"{what} at {self._address}", "expected a model that the server has", details[:300])
        tries = f", {self._retries + 1} times" if self._retries and code in _AGAIN else ""
        return RunError(f"{what} at {self._address}", f"{code.name}{tries}: {details[:300]}", _CURES.get(code, ""))
