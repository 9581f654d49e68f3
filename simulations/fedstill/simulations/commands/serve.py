"""`fedstill serve`: a run's models as a service that speaks the Open Inference Protocol."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedstill.common.errors import ConfigError
from fedstill.simulations.console import AsJson, find_run, make_console, print_json

if TYPE_CHECKING:
    from fedstill.server.serving.model import Served
    from fedstill.server.serving.service import Service, TlsKeys

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its name below runs/.")],
    client: Annotated[
        str, typer.Option(metavar="NAME", help="Serve this client's student. [default: the server's model]")
    ] = "",
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one and says which.")] = 8001,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The server's certificate with its chain, PEM.")
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key, PEM.")] = None,
    client_ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer only who has a certificate of this authority, PEM."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen without TLS at an address that others can reach.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Rows that are computed at once.")] = 64,
    delay: Annotated[float, typer.Option(min=0, help="Milliseconds in which a request waits for others.")] = 0.0,
    block: Annotated[
        int, typer.Option(min=1, help="Rows are computed in multiples of this, so that answers do not depend on it.")
    ] = 16,
    requests: Annotated[int, typer.Option(min=1, help="Requests that may wait; the next is refused.")] = 64,
    largest_message: Annotated[int, typer.Option(min=1, help="MiB of one request.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="Threads with which torch computes.")] = 1,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for what is under way at the end.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Offer a run's trained models over gRPC (Open Inference Protocol), until SIGTERM or Ctrl-C."""
    import torch

    from fedstill.server.serving.batching import Limits
    from fedstill.server.serving.service import Service, TlsKeys

    tls = TlsKeys(certificate, key, client_ca)
    if tls.certificate is None and host not in _LOOPBACK and not insecure:
        raise ConfigError(
            f"--host {host} without TLS",
            "expected a certificate, because others can reach that address",
            "name --certificate and --key, or say --insecure",
        )
    limits = Limits(
        batch=batch, delay=delay / 1000, block=block, requests=requests, message=largest_message * 1024 * 1024
    )
    models = _models(run, client)
    torch.set_num_threads(threads)
    service = Service(models, host=host, port=port, tls=tls, limits=limits)
    _until_told(service, models, f"{host}:{service.port}", tls, grace=grace, as_json=as_json)


def _models(run: Path, client: str) -> list[Served]:
    from fedstill.server.folder import open_folder
    from fedstill.server.serving.loading import server_models
    from fedstill.simulations.trained import students

    folder = open_folder(find_run(run))
    return students(folder, client) if client else server_models(folder)


def _until_told(
    service: Service, models: list[Served], address: str, tls: TlsKeys, *, grace: float, as_json: bool
) -> None:
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    service.start()
    if as_json:
        print_json({"address": address, "tls": tls.words, "models": {one.name: one.version for one in models}})
    else:
        console = make_console()
        for one in models:
            console.print(
                f"model {one.name} version {one.version}: {one.architecture}, inputs {one.input_type} "
                f"{[-1, *one.spec.input_shape]}, {len(one.spec.classes)} classes",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
        console.print(f"serving at {address} ({tls.words}); SIGTERM or Ctrl-C ends it", highlight=False, soft_wrap=True)
    told.wait()
    service.stop(grace=grace)
