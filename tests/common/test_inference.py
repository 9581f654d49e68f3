"""The messages of the Open Inference Protocol: generated as committed, those of the public text, tensors both ways."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedstill.common.errors import KnowledgeError, MismatchError, Reason
from fedstill.common.inference import generate
from fedstill.common.inference.about import classes_of
from fedstill.common.inference.open_inference_pb2 import InferTensorContents
from fedstill.common.inference.tensors import DATATYPES, raw_bytes, read_tensor, typed_contents

PUBLIC = Path(__file__).parents[1] / "server" / "open_inference_peer.proto"


def test_the_committed_files_are_those_that_are_generated() -> None:
    for name, text in generate.generated().items():
        assert (generate.HERE / name).read_text(encoding="utf-8") == text, f"{name}: run 'make protocol'"


def described(path: Path, folder: Path) -> FileDescriptorProto:
    told = folder / path.name
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{path.parent}", f"--descriptor_set_out={told}"]
    subprocess.run([*command, path.name], check=True)
    [found] = FileDescriptorSet.FromString(told.read_bytes()).file
    found.ClearField("name")
    return found


def test_the_messages_are_those_of_the_public_protocol(tmp_path: Path) -> None:
    assert described(generate.HERE / "open_inference.proto", tmp_path) == described(PUBLIC, tmp_path)


def test_other_clients_of_the_protocol_can_be_imported_beside_ours() -> None:
    code = (
        "import fedstill.common.inference.endpoint; import tritonclient.grpc;"
        "from tritonclient.grpc.service_pb2 import ModelReadyRequest"
    )
    for text in (code, ";".join(reversed(code.split(";")))):
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@given(data=st.data(), datatype=st.sampled_from(sorted(DATATYPES)))
def test_a_tensor_comes_back_as_it_was_sent(data: Any, datatype: str) -> None:
    kind = DATATYPES[datatype].numpy
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = data.draw(arrays.arrays(kind, shape))

    raw = raw_bytes(array, datatype)
    back = read_tensor("x", datatype, shape, contents=InferTensorContents(), raw=raw)

    assert (back.dtype, back.shape) == (kind, shape)
    np.testing.assert_array_equal(back, array)
    if DATATYPES[datatype].field:
        typed = read_tensor("x", datatype, shape, contents=typed_contents(array, datatype), raw=None)
        np.testing.assert_array_equal(typed, array)


def test_raw_bytes_are_little_endian_and_row_major() -> None:
    assert raw_bytes(np.array([[1, 2], [3, 256]], dtype=">i4").T, "INT32").hex(" ", 4) == (
        "01000000 03000000 02000000 00010000"
    )


@pytest.mark.parametrize(
    ("datatype", "contents", "reason"),
    [
        ("BYTES", InferTensorContents(bytes_contents=[b"a"]), Reason.TYPE),
        ("FP16", InferTensorContents(fp32_contents=[1.0]), Reason.TYPE),
        ("FP32", InferTensorContents(fp64_contents=[1.0]), Reason.TYPE),
        ("FP32", InferTensorContents(fp32_contents=[1.0], int_contents=[1]), Reason.TYPE),
        ("FP32", InferTensorContents(), Reason.SHAPE),
        ("INT8", InferTensorContents(int_contents=[128]), Reason.RANGE),
        ("UINT16", InferTensorContents(uint_contents=[65536]), Reason.RANGE),
    ],
)
def test_typed_contents_that_do_not_go_with_the_datatype(
    datatype: str, contents: InferTensorContents, reason: Reason
) -> None:
    with pytest.raises(KnowledgeError) as told:
        read_tensor("x", datatype, [1], contents=contents, raw=None)
    assert told.value.reason is reason


@pytest.mark.parametrize("text", ["a,b", "[1]", '"a"', "{}", "["])
def test_classes_that_are_no_list_of_names(text: str) -> None:
    with pytest.raises(MismatchError, match="expected a JSON list of names"):
        classes_of({"classes": text})
    assert classes_of({}) == ()
