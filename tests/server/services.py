"""What tests of the service share: small models, a model that waits, keys and certificates."""

from __future__ import annotations

import datetime
import ipaddress
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor, nn

from fedstill.common.learning import Training
from fedstill.common.models import build_model
from fedstill.common.seeding import torch_rng
from fedstill.common.task import TaskSpec
from fedstill.server.serving.model import Served

IMAGE = TaskSpec("shapes", "categorical", "image", ("round", "square", "flat"), (1, 8, 8))
TEXT = TaskSpec("notes", "categorical", "text", ("good", "bad"), (6,), vocabulary=20, tokenizer="t0k")


def served(spec: TaskSpec = IMAGE, architecture: str = "cnn-small", **changes: Any) -> Served:
    model = build_model(architecture, spec, seed=4).eval()
    return replace(Served(spec.name, "7", spec, architecture, model, Training(), "pr0xy", "a-run"), **changes)


def images(count: int, *, seed: int = 1) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch_rng(seed, "images"))


def raw(answer: Any, place: int = 0) -> np.ndarray[Any, Any]:
    return np.frombuffer(answer.raw_output_contents[place], dtype="<f4").reshape(tuple(answer.outputs[place].shape))


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as told:
        call()
    return told.value.code(), told.value.details() or ""


@dataclass(frozen=True)
class Peer:
    """What others make of the public protocol: messages, and stubs with servicers."""

    messages: Any
    grpc: Any


class Gated(nn.Module):
    """A model that waits at a gate before it answers; how often it was asked, and about how many rows.

    Attributes:
        inner: the model.
        asked: set when somebody stands at the gate.
        gate: open if set.
        sizes: rows of each call.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.asked, self.gate = threading.Event(), threading.Event()
        self.sizes: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.asked.set()
        if not self.gate.wait(20):
            raise TimeoutError("nobody opened the gate")
        self.sizes.append(len(inputs))
        outputs: Tensor = self.inner(inputs)
        return outputs


@dataclass(frozen=True)
class Party:
    """PEM files of somebody, and of the authority that vouches for them."""

    authority: Path
    certificate: Path
    key: Path


class Authority:
    """Signs certificates for 127.0.0.1 that are valid for a day."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._file = folder / f"{name}.pem"
        self._file.write_bytes(self._signed(self._name, self._key.public_key(), authority=True))

    def issue(self, name: str) -> Party:
        key, certificate = self._folder / f"{name}.key", self._folder / f"{name}.crt"
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        certificate.write_bytes(self._signed(subject, own.public_key(), authority=False))
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        key.write_bytes(own.private_bytes(*form))
        return Party(self._file, certificate, key)

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
            builder = builder.add_extension(place, critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
