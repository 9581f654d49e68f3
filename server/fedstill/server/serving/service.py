"""The gRPC server around models: address, TLS, health, a graceful end."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from fedstill.common.errors import ConfigError, UnsupportedError
from fedstill.common.inference.endpoint import pem
from fedstill.common.inference.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from fedstill.server.serving.batching import Batcher, Counts, Limits
from fedstill.server.serving.model import Served
from fedstill.server.serving.servicer import Inference

if TYPE_CHECKING:
    from grpc_health.v1.health import HealthServicer

SERVICE = "inference.GRPCInferenceService"

_SPARE = 8
"""Threads beside those of the requests that may wait: for health, metadata, and saying that there are too many."""


@dataclass(frozen=True, slots=True)
class TlsKeys:
    """PEM files of a server.

    Attributes:
        certificate, key: the server's own; None for a service without TLS.
        client_authority: certificates that a client's is checked against; None asks clients for none.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_authority: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError(
                f"certificate {self.certificate} with key {self.key}", "expected both or none", "name both files"
            )
        if self.client_authority is not None and self.certificate is None:
            raise ConfigError(
                f"client authority {self.client_authority} without a certificate of the server",
                "expected one, because clients show theirs within TLS",
                "name certificate and key",
            )

    @property
    def words(self) -> str:
        """How safe it is, in a few words."""
        if self.certificate is None:
            return "no TLS"
        return "mutual TLS" if self.client_authority else "TLS"

    def credentials(self) -> grpc.ServerCredentials | None:
        """What gRPC makes of them; None for no TLS.

        Raises:
            ConfigError: if a file cannot be used.
        """
        if self.certificate is None or self.key is None:
            return None
        pair = (pem(self.key), pem(self.certificate))
        trusted = pem(self.client_authority) if self.client_authority else None
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key)
            if self.client_authority is not None:
                context.load_verify_locations(self.client_authority)
        except ssl.SSLError as error:
            raise ConfigError(
                f"certificate {self.certificate} with key {self.key}", f"cannot be used: {error.reason or error}"
            ) from None
        return grpc.ssl_server_credentials([pair], trusted, require_client_auth=trusted is not None)


class Service:
    """A server of models, from `start` to `stop`; or in a `with`.

    Args:
        models: what is served; each name once.
        host: address or name to listen at.
        port: 0 takes a free one.
        tls: PEM files.
        limits: what is taken on.
    """

    def __init__(
        self,
        models: Sequence[Served],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: TlsKeys | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._batchers = {one.name: Batcher(one, self._limits) for one in models}
        self._inference = Inference({one.name: (one, self._batchers[one.name]) for one in models}, self._limits)
        self._health = _health()
        self._server = grpc.server(
            ThreadPoolExecutor(self._limits.requests + _SPARE, thread_name_prefix="request"),
            maximum_concurrent_rpcs=4 * self._limits.requests + 64,  # beyond it gRPC itself says no, without a thread
            options=[
                ("grpc.max_receive_message_length", self._limits.message),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server at the same port is an error, not half of the requests
            ],
        )
        add_GRPCInferenceServiceServicer_to_server(self._inference, self._server)
        self._add_health()
        self.port = self._bind(f"{host}:{port}" if ":" not in host else f"[{host}]:{port}", tls or TlsKeys())

    def counts(self, model: str) -> Counts:
        """What has been done for a model so far."""
        return self._batchers[model].counts()

    def start(self) -> None:
        """Begin to answer."""
        for batcher in self._batchers.values():
            batcher.start()
        self._server.start()
        for name in ("", SERVICE):
            self._health.set(name, _serving())

    def stop(self, *, grace: float = 10.0) -> bool:
        """Take nothing new, let what is under way come to its end, then stop.

        Args:
            grace: seconds; what is not done then is cut off.

        Returns:
            Whether everything came to its end in time.
        """
        self._health.enter_graceful_shutdown()
        self._inference.withdraw()
        ended = self._server.stop(grace).wait(grace + 5.0)
        for batcher in self._batchers.values():
            batcher.close()
        return ended

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(grace=1.0)

    def _bind(self, address: str, tls: TlsKeys) -> int:
        credentials = tls.credentials()
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"address {address}", f"cannot be listened at: {error}", "choose another host or port"
            ) from None

    def _add_health(self) -> None:
        from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

        add_HealthServicer_to_server(self._health, self._server)


def _health() -> HealthServicer:
    try:
        from grpc_health.v1.health import HealthServicer
    except ImportError:
        raise UnsupportedError(
            "serving a model", "expected the package grpcio-health-checking", "pip install 'fedstill[serve]'"
        ) from None
    return HealthServicer()


def _serving() -> int:
    from grpc_health.v1.health_pb2 import HealthCheckResponse

    return int(HealthCheckResponse.SERVING)
