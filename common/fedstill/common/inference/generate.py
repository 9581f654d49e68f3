"""Write the Python files of open_inference.proto: `make protocol`, with the version of grpcio-tools that `dev` pins.

The messages get a pool of descriptors of their own. In protobuf's default pool a name can stand once, and other clients
of the protocol (tritonclient, kserve) bring the same names: whoever comes second could not be imported.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FILES = ("open_inference_pb2.py", "open_inference_pb2.pyi", "open_inference_pb2_grpc.py")

_SHARED, _OWN = "_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"


def generated() -> dict[str, str]:
    """The files' text by their name.

    Raises:
        subprocess.CalledProcessError: if the compiler refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        proto = HERE / "open_inference.proto"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *outputs, str(proto)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        where = Path(folder) / HERE.relative_to(ROOT)
        return {name: (where / name).read_text(encoding="utf-8").replace(_SHARED, _OWN) for name in FILES}


if __name__ == "__main__":
    for name, text in generated().items():
        (HERE / name).write_text(text, encoding="utf-8")
