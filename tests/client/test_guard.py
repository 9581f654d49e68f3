from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedstill.client.guard import RELEASE_VARIABLE, Guard, usual_guard
from fedstill.client.holdings import Holding, Holdings
from fedstill.common.codecs.raw import Raw
from fedstill.common.data.federation import ClientData
from fedstill.common.data.proxy import ProxySet
from fedstill.common.embeddings import Embeddings
from fedstill.common.errors import ConfigError, MismatchError, Reason, RefusalError
from fedstill.common.knowledge import Features, Parameters, Prototypes, Relations, SoftLabels
from fedstill.common.learning import Training
from fedstill.common.messages import Method, Order, TaskOrder
from fedstill.common.task import Examples, TaskSpec
from fedstill.common.tasks.image import ImageTask

PROXY = ProxySet(torch.zeros(4, 2))
LABELS = SoftLabels("categorical", ("a", "b"), np.array([0]), np.array([[1, 0]], np.float32))
WEIGHTS = Parameters("m", {"w": np.zeros(1, np.float32)})
FEATURES = Features(np.array([0]), np.ones((1, 3), np.float32))
RELATIONS = Relations(np.array([0, 1]), np.array([[0, 1], [1, 0]], np.float32))

ROWS = Embeddings(("a",), np.ones((1, 1), np.float32), np.ones((1, 3), np.float32), np.array([0]))
MEANS = Prototypes(("a",), np.array([1]), np.ones((1, 3), np.float32), np.zeros((1, 0), np.float32))


def holdings(*tasks: str) -> Holdings:
    examples = Examples(torch.zeros(1, 2), torch.tensor([0]))
    spec = TaskSpec("t", "categorical", "image", ("a", "b"), (2,))
    held = Holding(ImageTask(), spec, "mlp-small", PROXY, ClientData(examples, examples, ("a", "b")), None)
    return Holdings("client-0", dict.fromkeys(tasks, held))


def order(**digests: str) -> Order:
    tasks: dict[str, Any] = {name: TaskOrder(digest, np.arange(4)) for name, digest in digests.items()}
    return Order("run", 1, 1, 1, 1, 0, Method("fedmd", {}, Training(), Raw()), tasks)


def test_an_order_about_the_clients_own_proxy_set_passes() -> None:
    Guard().check_order(order(t=PROXY.digest, unknown="other"), holdings("t", "more"))


def test_an_order_about_another_proxy_set_is_refused() -> None:
    # A server that chose the samples could ask about private ones.
    with pytest.raises(MismatchError, match=f"expected {PROXY.digest[:12]}, the one this client holds") as caught:
        Guard().check_order(order(t="0" * 64), holdings("t"))
    assert caught.value.reason is Reason.PROXY


def test_only_allowed_knowledge_leaves() -> None:
    for knowledge in (LABELS, WEIGHTS, FEATURES, RELATIONS, MEANS, None):
        assert Guard().release(knowledge) is knowledge
    strict = Guard(frozenset({"soft-labels"}))
    assert strict.release(LABELS) is LABELS
    with pytest.raises(RefusalError, match="'parameters': this client lets out soft-labels"):
        strict.release(WEIGHTS)
    with pytest.raises(RefusalError, match="'features': this client lets out soft-labels"):
        strict.release(FEATURES)
    with pytest.raises(RefusalError, match="'prototypes': this client lets out soft-labels"):
        strict.release(MEANS)
    with pytest.raises(RefusalError, match="lets out nothing"):
        Guard(frozenset()).release(LABELS)


def test_what_is_about_private_examples_leaves_only_if_the_owner_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusalError, match=r"'embeddings': this client lets out features.*set FEDSTILL_RELEASE="):
        Guard().release(ROWS)
    assert usual_guard() == Guard()
    monkeypatch.setenv(RELEASE_VARIABLE, " embeddings,")
    assert usual_guard().release(ROWS) is ROWS
    assert usual_guard().release(LABELS) is LABELS
    monkeypatch.setenv(RELEASE_VARIABLE, "embedings")
    with pytest.raises(ConfigError, match=r"FEDSTILL_RELEASE=embedings: expected a kind of knowledge.*embeddings"):
        usual_guard()
