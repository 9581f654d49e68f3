"""The service itself, asked over real gRPC by a client that was generated from the public protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from tests.server.services import TEXT, images, raw, refused, served
from torch import Tensor, nn

from fedstill.common import __version__
from fedstill.common.errors import ConfigError
from fedstill.common.learning import Training, predict
from fedstill.common.seeding import torch_rng
from fedstill.server.serving.model import weights_digest
from fedstill.server.serving.service import SERVICE, Service, TlsKeys


def health(channel: grpc.Channel) -> Any:
    return HealthStub(channel)


# What it says of itself ----------------------------------------------------------------------------------------------


def test_metadata_names_inputs_classes_and_digests(serve: Any, ask: Any, peer: Any) -> None:
    stub = ask(serve(served(), served(TEXT, "bag-small")))

    told = stub.ModelMetadata(peer.messages.ModelMetadataRequest(name="shapes"))
    other = stub.ModelMetadata(peer.messages.ModelMetadataRequest(name="notes", version="7"))

    assert (told.name, list(told.versions), told.platform) == ("shapes", ["7"], "pytorch_fedstill")
    assert [(one.name, one.datatype, list(one.shape)) for one in told.inputs] == [("inputs", "FP32", [-1, 1, 8, 8])]
    assert [(one.name, one.datatype, list(one.shape)) for one in told.outputs] == [
        ("logits", "FP32", [-1, 3]),
        ("probabilities", "FP32", [-1, 3]),
    ]
    assert dict(told.properties) == {
        "fedstill": __version__,
        "run": "a-run",
        "task": "shapes",
        "output": "categorical",
        "modality": "image",
        "classes": '["round", "square", "flat"]',
        "architecture": "cnn-small",
        "weights": weights_digest(served().model.state_dict()),
        "proxy": "pr0xy",
    }
    assert [(one.name, one.datatype, list(one.shape)) for one in other.inputs] == [("inputs", "INT64", [-1, 6])]
    assert (other.properties["vocabulary"], other.properties["tokenizer"]) == ("20", "t0k")
    assert stub.ServerMetadata(peer.messages.ServerMetadataRequest()).name == "fedstill"


def test_the_digest_of_weights_is_of_names_types_shapes_and_contents() -> None:
    weights = {"b": torch.tensor([1.5]), "a": torch.zeros(2, 1)}
    written = b"a\0<f4\0(2, 1)\0" + bytes(8) + b"b\0<f4\0(1,)\0" + np.float32(1.5).tobytes()

    assert weights_digest(weights) == hashlib.sha256(written).hexdigest()
    grid = torch.arange(24.0).reshape(1, 2, 3, 4)
    turned = grid.to(memory_format=torch.channels_last)
    assert weights_digest({"w": grid}) == weights_digest({"w": turned}) != weights_digest({"w": grid + 1})


def test_live_ready_and_health(serve: Any, ask: Any, peer: Any) -> None:
    service = serve()
    stub, messages = ask(service), peer.messages

    assert stub.ServerLive(messages.ServerLiveRequest()).live
    assert stub.ServerReady(messages.ServerReadyRequest()).ready
    assert stub.ModelReady(messages.ModelReadyRequest(name="shapes")).ready
    assert stub.ModelReady(messages.ModelReadyRequest(name="shapes", version="7")).ready
    assert not stub.ModelReady(messages.ModelReadyRequest(name="shapes", version="6")).ready
    assert not stub.ModelReady(messages.ModelReadyRequest(name="shops")).ready
    with grpc.insecure_channel(f"127.0.0.1:{service.port}") as channel:
        for name in ("", SERVICE):
            told = health(channel).Check(HealthCheckRequest(service=name), timeout=5)
            assert told.status == HealthCheckResponse.SERVING
        seen = health(channel).Watch(HealthCheckRequest(), timeout=10)
        assert next(seen).status == HealthCheckResponse.SERVING
        service.stop(grace=1.0)
        assert next(seen).status == HealthCheckResponse.NOT_SERVING


# Answers -------------------------------------------------------------------------------------------------------------


def test_raw_and_typed_contents_say_the_same(serve: Any, ask: Any, question: Any) -> None:
    stub, inputs, one = ask(serve()), images(16), served()
    wanted = predict(one.model, inputs, training=Training())

    told = stub.ModelInfer(question(inputs, id="q-1"))
    request = question(inputs)
    request.ClearField("raw_input_contents")
    request.inputs[0].contents.fp32_contents.extend(inputs.flatten().tolist())
    typed = stub.ModelInfer(request)

    assert (told.model_name, told.model_version, told.id) == ("shapes", "7", "q-1")
    assert [output.name for output in told.outputs] == ["logits", "probabilities"]
    np.testing.assert_array_equal(raw(told), wanted.numpy())
    np.testing.assert_array_equal(raw(told, 1), torch.softmax(wanted, -1).numpy())
    assert not typed.raw_output_contents
    np.testing.assert_array_equal(np.float32(typed.outputs[0].contents.fp32_contents), wanted.flatten().numpy())


def test_only_the_outputs_that_are_asked_for(serve: Any, ask: Any, question: Any) -> None:
    told = ask(serve()).ModelInfer(question(images(2), outputs=("probabilities",)))

    assert [output.name for output in told.outputs] == ["probabilities"]
    np.testing.assert_allclose(raw(told).sum(1), 1, rtol=1e-6)


def test_token_ids(serve: Any, ask: Any, question: Any) -> None:
    one = served(TEXT, "bag-small")
    ids = torch.randint(1, 20, (16, 6), generator=torch_rng(1, "ids"))

    told = ask(serve(one)).ModelInfer(question(ids, model="notes", outputs=("logits",)))

    np.testing.assert_array_equal(raw(told), predict(one.model, ids, training=Training()).numpy())


def _nan(request: Any) -> None:
    values = np.frombuffer(request.raw_input_contents[0], dtype="<f4").copy()
    values[64 + 5] = np.nan
    request.raw_input_contents[0] = values.tobytes()


def _shape(*sizes: int) -> Callable[[Any], None]:
    def change(request: Any) -> None:
        request.inputs[0].shape[:] = sizes

    return change


def _typed_beside(request: Any) -> None:
    request.inputs[0].contents.fp32_contents.append(1.0)


def _typed_wrong(request: Any) -> None:
    request.ClearField("raw_input_contents")
    request.inputs[0].contents.fp64_contents.extend([0.0] * 128)


def _typed_few(request: Any) -> None:
    request.ClearField("raw_input_contents")
    request.inputs[0].contents.fp32_contents.extend([0.0] * 127)


BROKEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "not finite": (_nan, "row 1 of tensor 'inputs' with NaN or infinity: expected finite numbers (leave the row out"),
    "another shape": (_shape(2, 8, 8, 1), r"of shape [2, 8, 8, 1]: expected [-1, 1, 8, 8]"),
    "more axes": (_shape(2, 1, 8, 8, 1), r"of shape [2, 1, 8, 8, 1]: expected [-1, 1, 8, 8]"),
    "no rows": (_shape(0, 1, 8, 8), "of 512 raw bytes: expected 0 for FP32 of shape [0, 1, 8, 8]"),
    "a negative size": (_shape(-2, 1, 8, 8), "expected up to 8 sizes >= 0"),
    "a huge size": (_shape(1000, 2**40, 2**40), "expected 4835703278458516698824704000 for FP32"),
    "more rows than a request may have": (_shape(2000, 1, 8, 8), "2000 rows: expected at most 1024 in a request"),
    "fewer bytes": (_shape(3, 1, 8, 8), "of 512 raw bytes: expected 768"),
    "another datatype": (
        lambda request: setattr(request.inputs[0], "datatype", "FP64"),
        "tensor 'inputs' of datatype 'FP64': expected FP32",
    ),
    "another input": (lambda request: setattr(request.inputs[0], "name", "x"), "input tensors ['x']: expected"),
    "no input": (lambda request: request.ClearField("inputs"), "input tensors []: expected ['inputs']"),
    "typed beside raw": (_typed_beside, "1 raw contents beside typed ones: expected one for each input tensor"),
    "two raw": (lambda request: request.raw_input_contents.append(b""), "2 raw contents: expected one"),
    "the wrong field": (_typed_wrong, "of datatype FP32 in fp64_contents: expected fp32_contents"),
    "too few elements": (_typed_few, "of 127 elements: expected 128 for shape [2, 1, 8, 8]"),
    "an unknown output": (
        lambda request: request.outputs.add(name="logit"),
        "output 'logit': expected one that the model has (did you mean 'logits'?)",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_request_is_told_the_value_the_rule_and_the_cure(
    name: str, serve: Any, ask: Any, question: Any
) -> None:
    change, words = BROKEN[name]
    stub, request = ask(serve()), question(images(2))
    change(request)

    code, details = refused(lambda: stub.ModelInfer(request))

    assert (code, words in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
    assert raw(stub.ModelInfer(question(images(2)))).shape == (2, 3)


def test_a_token_that_the_model_does_not_know(serve: Any, ask: Any, question: Any) -> None:
    stub = ask(serve(served(TEXT, "bag-small")))
    for token in (20, -1):
        told = refused(partial(stub.ModelInfer, question(torch.full((1, 6), token), model="notes")))
        assert told[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert f"token id {token}: expected 0 to 19" in told[1]


def test_a_model_or_version_that_is_not_there(serve: Any, ask: Any, question: Any, peer: Any) -> None:
    stub = ask(serve())

    code, details = refused(lambda: stub.ModelInfer(question(images(1), model="shape")))
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, "model 'shape': did you mean 'shapes'?")
    code, details = refused(lambda: stub.ModelInfer(question(images(1), model_version="8")))
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, "version '8' of model 'shapes': expected '7' or none")
    code, _ = refused(lambda: stub.ModelMetadata(peer.messages.ModelMetadataRequest(name="")))
    assert code is grpc.StatusCode.NOT_FOUND


class Failing(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.max() > 100:
            raise RuntimeError("out of patience")
        return inputs.flatten(1)[:, :3] * self.scale

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


def test_a_model_that_fails_fails_one_batch(serve: Any, ask: Any, question: Any) -> None:
    stub = ask(serve(served(model=Failing())))

    code, details = refused(lambda: stub.ModelInfer(question(torch.full((1, 1, 8, 8), 101.0))))

    assert (code, details) == (grpc.StatusCode.INTERNAL, "the model failed: out of patience")
    assert raw(stub.ModelInfer(question(images(1)))).shape == (1, 3)


# TLS -----------------------------------------------------------------------------------------------------------------


def credentials(authority: Path, party: Any = None) -> grpc.ChannelCredentials:
    key, chain = (party.key.read_bytes(), party.certificate.read_bytes()) if party else (None, None)
    return grpc.ssl_channel_credentials(authority.read_bytes(), key, chain)


def test_tls_and_mutual_tls(serve: Any, ask: Any, question: Any, parties: Any) -> None:
    own, client, stranger = parties["server"], parties["client"], parties["stranger"]
    open_to_all = serve(tls=TlsKeys(own.certificate, own.key))
    by_invitation = serve(tls=TlsKeys(own.certificate, own.key, own.authority))

    def asked(service: Service, *who: Any) -> Any:
        return ask(service, credentials(*who)).ModelInfer(question(images(1)), timeout=10)

    assert raw(asked(open_to_all, own.authority)).shape == (1, 3)
    assert raw(asked(by_invitation, own.authority, client)).shape == (1, 3)
    for service, who in (
        (open_to_all, (stranger.authority,)),
        (by_invitation, (own.authority,)),
        (by_invitation, (own.authority, stranger)),
        (by_invitation, (stranger.authority, client)),
    ):
        assert refused(partial(asked, service, *who))[0] is grpc.StatusCode.UNAVAILABLE
    code, _ = refused(lambda: ask(open_to_all).ModelInfer(question(images(1)), timeout=10))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_files_that_cannot_be_used(parties: Any, tmp_path: Path) -> None:
    own, stranger = parties["server"], parties["stranger"]
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    with pytest.raises(ConfigError, match="expected both or none"):
        TlsKeys(own.certificate)
    with pytest.raises(ConfigError, match="without a certificate of the server"):
        TlsKeys(client_authority=own.authority)
    with pytest.raises(ConfigError, match="cannot be used"):
        Service([served()], tls=TlsKeys(own.certificate, stranger.key))
    with pytest.raises(ConfigError, match="expected PEM"):
        Service([served()], tls=TlsKeys(text, own.key))
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Service([served()], tls=TlsKeys(own.certificate, own.key, tmp_path / "none.pem"))


def test_a_port_that_is_taken(serve: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be listened at"):
        Service([served()], port=serve().port)
