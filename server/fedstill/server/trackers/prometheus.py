"""A run for Prometheus while it goes on, and whether it is well: `/metrics` and `/health` over HTTP.

    fedstill_step                     the last committed step; fedstill_steps: number of the last one
    fedstill_seconds_total            from first message to commit, all steps
    fedstill_contributions_total      that counted
    fedstill_rejections_total         that did not, by reason
    fedstill_abandoned_total          attempts at a round that stayed below quorum
    fedstill_bytes_total              by direction
    fedstill_last_commit_timestamp_seconds

A run that is gone on with counts what was committed before.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fedstill.common.errors import ConfigError, UnsupportedError


class Prometheus:
    """Counts what is committed and answers on an address of its own."""

    def __init__(self, address: str, run: str, *, last: int, committed: Sequence[Mapping[str, Any]] = ()) -> None:
        """Begin to answer.

        Args:
            address: HOST:PORT; port 0 takes a free one.
            run: the run's name, a label of every metric.
            last: number of the last step.
            committed: steps of the run that were committed before.

        Raises:
            ConfigError: for an address that cannot be used.
            UnsupportedError: if prometheus-client is not installed.
        """
        try:
            import prometheus_client as prometheus
        except ImportError:
            raise UnsupportedError(
                f"metrics at {address}", "prometheus-client is not installed", "pip install 'fedstill[metrics]'"
            ) from None
        self._registry = prometheus.CollectorRegistry()

        def make(kind: Any, name: str, text: str, *labels: str) -> Any:
            return kind(f"fedstill_{name}", text, ["run", *labels], registry=self._registry)

        self._run = run
        self._step = make(prometheus.Gauge, "step", "The last committed step").labels(run)
        make(prometheus.Gauge, "steps", "Number of the last step").labels(run).set(last)
        self._seconds = make(prometheus.Counter, "seconds", "From first message to commit, all steps").labels(run)
        self._accepted = make(prometheus.Counter, "contributions", "Answers that counted").labels(run)
        self._rejected = make(prometheus.Counter, "rejections", "Answers that did not count", "reason")
        self._abandoned = make(prometheus.Counter, "abandoned", "Attempts below quorum").labels(run)
        self._bytes = make(prometheus.Counter, "bytes", "On the wire", "direction")
        self._committed = make(prometheus.Gauge, "last_commit_timestamp_seconds", "Time of the last commit").labels(run)
        self._last, self._at = last, -1
        for record in committed:
            self._count(record)
        self._server = _serve(address, prometheus.make_wsgi_app(self._registry), self._health)
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @property
    def port(self) -> int:
        """The port that answers."""
        return int(self._server.server_port)

    def on_step(self, record: Mapping[str, Any]) -> None:
        """Count a step."""
        self._count(record)
        self._committed.set(time.time())

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def _count(self, record: Mapping[str, Any]) -> None:
        self._at = record["step"]
        self._step.set(record["step"])
        self._seconds.inc(record["seconds"])
        self._accepted.inc(len(record["accepted"]))
        attempts = [record, *record["abandoned"]]
        for rejection in (one for attempt in attempts for one in attempt["rejected"]):
            self._rejected.labels(self._run, rejection["reason"]).inc()
        self._abandoned.inc(len(record["abandoned"]))
        for direction in ("up", "down"):
            self._bytes.labels(self._run, direction).inc(record["bytes"][direction])

    def _health(self) -> dict[str, Any]:
        return {"run": self._run, "step": self._at, "steps": self._last}


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Not a line for every scrape."""


def _serve(address: str, metrics: Any, health: Callable[[], Mapping[str, Any]]) -> WSGIServer:
    host, _, port = address.rpartition(":")

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        known = path == "/health"
        start("200 OK" if known else "404 Not Found", [("Content-Type", "application/json")])
        return [json.dumps(health()).encode() if known else b"{}"]

    try:
        return make_server(host, int(port), app, handler_class=_Quiet)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"metrics='{address}'", f"cannot answer there: {error}", "HOST:PORT, such as 127.0.0.1:9464"
        ) from None
