from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedstill.common.seeding import derive, numpy_rng, torch_rng, torch_seeded

SCOPE = st.lists(st.one_of(st.text(max_size=5).filter(lambda text: "\x1f" not in text), st.integers()), max_size=3)


def test_seeds_are_the_same_on_every_machine() -> None:
    assert derive(1) == 3874038210105081456
    assert derive(1, "client", "client-0", "digits", 3) == 6622840363733539719
    assert derive(-7, "a", 0) == 9204611404794233156


@given(st.integers(), SCOPE, st.integers(), SCOPE)
def test_other_scopes_have_other_seeds(seed: int, scope: list[str | int], other: int, others: list[str | int]) -> None:
    assert 0 <= derive(seed, *scope) < 2**63
    assert (derive(seed, *scope) == derive(other, *others)) == ((seed, scope) == (other, others))


def test_parts_keep_their_order_and_type() -> None:
    assert len({derive(1, "a", "b"), derive(1, "b", "a"), derive(1, "ab"), derive(1, "1"), derive(1, 1)}) == 5


def test_generators_are_independent_and_repeatable() -> None:
    first, again, other = numpy_rng(1, "x"), numpy_rng(1, "x"), numpy_rng(1, "y")
    draws = first.random(1000)
    np.testing.assert_array_equal(draws, again.random(1000))
    assert abs(np.corrcoef(draws, other.random(1000))[0, 1]) < 0.1
    torch.testing.assert_close(
        torch.rand(5, generator=torch_rng(1, "x")), torch.rand(5, generator=torch_rng(1, "x")), rtol=0, atol=0
    )


def test_nothing_touches_the_global_generators() -> None:
    before = (torch.get_rng_state().clone(), random.getstate(), np.random.get_state(legacy=False))
    numpy_rng(1).random()
    torch.rand(1, generator=torch_rng(1))
    with torch_seeded(1, "init"):
        inside = torch.rand(3)
    with torch_seeded(1, "init"):
        torch.testing.assert_close(torch.rand(3), inside, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_equal(np.random.get_state(legacy=False), before[2])


def test_the_global_generator_is_put_back_after_an_error() -> None:
    before = torch.get_rng_state().clone()
    try:
        with torch_seeded(1):
            torch.rand(1)
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(torch.get_rng_state(), before)
