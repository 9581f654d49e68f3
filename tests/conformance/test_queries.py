"""Every query strategy that is discovered chooses as many different samples as it is asked for, by its seed alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedstill.common.knowledge import SoftLabels
from fedstill.common.outputs import OUTPUTS
from fedstill.common.query import CONSENSUS, DISAGREEMENT, HISTORY, Pool, QueryStrategy
from fedstill.common.registry import QUERIES, first_line
from fedstill.common.seeding import numpy_rng


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Proxy sets of 2 to 40 samples after any number of rounds."""
    size = draw(st.integers(2, 40))
    rng = numpy_rng(draw(st.integers(0, 999)), "pool")
    last = rng.integers(0, draw(st.integers(1, 6)), size)
    times = np.where(last > 0, rng.integers(1, 4, size), 0)
    asked = np.flatnonzero(last)
    # Whole numbers of eighths: many are equal.
    values = (rng.multinomial(8, [1 / 3] * 3, len(asked)) / 8).astype(np.float32)
    labels = SoftLabels("categorical", ("a", "b", "c"), asked, values) if len(asked) else None
    return Pool(times, last, labels, np.where(last > 0, rng.integers(0, 4, size) / 4, np.nan))


def blind(pool: Pool, needs: frozenset[str]) -> Pool:
    """The pool without what a strategy says that it does not need: the server keeps nothing of it."""
    if HISTORY not in needs:
        pool = replace(pool, times=np.zeros_like(pool.times), last=np.zeros_like(pool.last))
    if CONSENSUS not in needs:
        pool = replace(pool, consensus=None)
    return pool if DISAGREEMENT in needs else replace(pool, disagreement=np.full(len(pool), np.nan))


@pytest.fixture(params=QUERIES.names())
def strategy(request: pytest.FixtureRequest) -> QueryStrategy:
    made: QueryStrategy = QUERIES.get(request.param)()
    return made


def test_what_it_says_of_itself(strategy: QueryStrategy) -> None:
    assert QUERIES.get(strategy.name) is type(strategy)
    assert first_line(strategy)
    assert strategy.outputs
    assert strategy.outputs <= set(OUTPUTS.names())
    assert strategy.needs <= {HISTORY, CONSENSUS, DISAGREEMENT}
    assert not strategy.needs or HISTORY in strategy.needs


@settings(max_examples=80, deadline=None)
@given(pool=pools(), share=st.floats(0, 1), seed=st.integers(0, 99), data=st.data())
def test_a_choice(pool: Pool, share: float, seed: int, data: st.DataObject) -> None:
    strategy: QueryStrategy = QUERIES.get(data.draw(st.sampled_from(QUERIES.names())))()
    count = 1 + round(share * (len(pool) - 2))

    ids = strategy.choose(pool, count, numpy_rng(seed))

    assert len(ids) == len(set(ids.tolist())) == count
    assert set(ids.tolist()) <= set(range(len(pool)))
    assert ids.dtype == np.int64
    again = strategy.choose(blind(pool, strategy.needs), count, numpy_rng(seed))
    assert again.tolist() == ids.tolist()


def test_another_seed_gives_another_choice(strategy: QueryStrategy) -> None:
    size = 60
    nothing = Pool(np.zeros(size, np.int64), np.zeros(size, np.int64), None, np.full(size, np.nan))
    choices = {tuple(sorted(strategy.choose(nothing, 20, numpy_rng(seed)).tolist())) for seed in range(5)}
    assert len(choices) == 5
