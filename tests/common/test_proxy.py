from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
import torch

from fedstill.common.data.proxy import ProxySet, content_digest
from fedstill.common.errors import ConfigError, DataError, KnowledgeError, Reason

INPUTS = torch.arange(24, dtype=torch.float32).reshape(6, 4)


def test_the_digest_is_of_content_shape_and_type() -> None:
    # SHA-256 of "<f4(2,)" and the eight bytes of 0.0 and 1.0
    wanted = hashlib.sha256(b"<f4(2,)" + struct.pack("<2f", 0.0, 1.0)).hexdigest()[:16]
    assert content_digest(torch.tensor([0.0, 1.0])) == wanted
    others = [INPUTS.double(), INPUTS.reshape(4, 6), INPUTS + 1, INPUTS[:5]]
    assert len({content_digest(inputs) for inputs in [INPUTS, *others]}) == 5


def test_the_digest_does_not_depend_on_the_layout() -> None:
    images = torch.arange(48.0).reshape(2, 3, 2, 4)
    assert content_digest(images.contiguous(memory_format=torch.channels_last)) == content_digest(images)
    assert ProxySet(INPUTS.T.contiguous().T).digest == ProxySet(INPUTS).digest


def test_samples_by_id() -> None:
    proxy = ProxySet(INPUTS)
    assert len(proxy) == 6
    assert proxy.at(np.array([4, 0])).tolist() == INPUTS[[4, 0]].tolist()
    assert proxy.at(np.arange(6)) is proxy.inputs
    assert proxy.at(np.zeros(0, np.int64)).shape == (0, 4)
    for bad in (6, -1):
        with pytest.raises(KnowledgeError, match=f"proxy sample {bad}: expected 0 to 5") as caught:
            proxy.at(np.array([0, bad]))
        assert caught.value.reason is Reason.SAMPLES


def test_drawing_is_seeded_sorted_and_without_replacement() -> None:
    proxy = ProxySet(INPUTS)
    drawn = proxy.draw(3, seed=1)
    assert drawn.dtype == np.int64
    assert len(set(drawn.tolist())) == 3
    assert drawn.tolist() == sorted(drawn.tolist()) == proxy.draw(3, seed=1).tolist()
    assert len({tuple(proxy.draw(3, seed=seed).tolist()) for seed in range(20)}) > 5
    assert proxy.draw(0, seed=1).tolist() == proxy.draw(6, seed=1).tolist() == list(range(6))
    with pytest.raises(ConfigError, match=r"proxy\.per-round=7: expected at most 6"):
        proxy.draw(7, seed=1)


def test_a_sample_that_no_model_can_read() -> None:
    inputs = torch.zeros(4, 1, 2, 2)
    inputs[2, 0, 1, 1] = float("nan")

    with pytest.raises(DataError, match="proxy sample 2 with numbers that are not finite: expected inputs"):
        ProxySet(inputs)
