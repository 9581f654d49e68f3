"""`fedstill serve` as a process of its own, and as a peer the client that comes with Triton."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedstill.common.errors import ConfigError, FedstillError, RunFolderError, UnsupportedError
from fedstill.server.serving.loading import server_models
from fedstill.simulations.cli import app
from fedstill.simulations.trained import students

PEER = """
import json, sys
import numpy as np
import tritonclient.grpc as triton

address, rows, outputs = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
client = triton.InferenceServerClient(address)
model = client.get_server_metadata(as_json=True)
assert (client.is_server_live(), client.is_server_ready(), client.is_model_ready("wine")) == (True, True, True)
assert not client.is_model_ready("beer")
inputs = triton.InferInput("inputs", [len(rows), 13], "FP32")
inputs.set_data_from_numpy(np.array(rows, dtype=np.float32))
answer = client.infer("wine", [inputs], outputs=[triton.InferRequestedOutput(name) for name in outputs] or None)
try:
    client.infer("beer", [inputs])
    refused = ""
except triton.InferenceServerException as error:
    refused = f"{error.status()} {error.message()}"
told = {name: answer.as_numpy(name).tolist() for name in outputs or ("logits", "probabilities")}
metadata = client.get_model_metadata("wine", as_json=True)
print(json.dumps({"server": model["name"], "outputs": told, "refused": refused, "metadata": metadata}))
"""


@contextmanager
def serving(*words: str | Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command on a free port, and what it said when it was ready."""
    command = [sys.executable, "-c", "from fedstill.simulations.cli import main; main()", "serve", *map(str, words)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("}"):
                break
        yield process, json.loads("".join(lines) or "{}")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_process_serves_a_run_to_tritons_client_until_it_is_told_to_end(play_small: Any) -> None:
    played = play_small({"teacher.kind": "model"})
    [one] = server_models(played.folder)
    rows = np.arange(39, dtype=np.float32).reshape(3, 13) / 10
    wanted = one.answer([rows], block=16)

    with serving(played.folder.path) as (process, told):
        peer = [sys.executable, "-c", PEER, told["address"], json.dumps(rows.tolist())]
        done = subprocess.run(peer, capture_output=True, text=True, timeout=60, check=False)
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=15)

    assert done.returncode == 0, done.stderr
    assert (told["tls"], told["models"], code) == ("no TLS", {"wine": "3"}, 0)
    seen = json.loads(done.stdout)
    np.testing.assert_array_equal(np.float32(seen["outputs"]["logits"]), wanted.numpy())
    np.testing.assert_array_equal(np.float32(seen["outputs"]["probabilities"]), one.soft(wanted).numpy())
    assert seen["server"] == "fedstill"
    assert seen["metadata"]["inputs"] == [{"name": "inputs", "datatype": "FP32", "shape": ["-1", "13"]}]
    assert seen["refused"] == "StatusCode.NOT_FOUND model 'beer': known: wine"


@pytest.mark.slow
def test_ctrl_c_ends_it_too(play_small: Any) -> None:
    played = play_small()

    with serving(played.folder.path, "--client", "client-1") as (process, told):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 0

    assert told["models"] == {"wine": students(played.folder, "client-1")[0].version}


@pytest.mark.parametrize(
    ("words", "kind", "told"),
    [
        ([], UnsupportedError, "take a client's student (--client NAME)"),
        (["--client", "client-7"], ConfigError, "client 'client-7'"),
        (["--host", "0.0.0.0"], ConfigError, "--host 0.0.0.0 without TLS: expected a certificate"),
        (["--certificate", "a.pem"], ConfigError, "expected both or none"),
        (["--client-ca", "a.pem"], ConfigError, "without a certificate of the server"),
        (["--client", "client-1", "--certificate", "a.pem", "--key", "b.pem"], ConfigError, "cannot be read"),
    ],
)
def test_what_cannot_be_served_is_told(words: list[str], kind: type[FedstillError], told: str, play_small: Any) -> None:
    played = play_small()
    result = CliRunner().invoke(app, ["serve", str(played.folder.path), *words])
    assert isinstance(result.exception, kind)
    assert told in str(result.exception)


def test_a_run_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["serve", "nothing"])
    assert isinstance(result.exception, RunFolderError)
