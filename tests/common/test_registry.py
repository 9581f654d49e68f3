from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from fedstill.common import check
from fedstill.common.errors import ConfigError, FedstillError, nearest
from fedstill.common.registry import ALGORITHMS, CODECS, first_line


def test_plug_ins_are_found_by_the_name_of_their_file() -> None:
    assert {"central", "dsfl", "fedavg", "feddf", "fedmd", "local"} <= set(ALGORITHMS.names())
    assert {"argmax", "fp16", "int8", "raw", "topk"} <= set(CODECS.names())
    assert ALGORITHMS.names() == tuple(sorted(ALGORITHMS.names()))
    for registry in (ALGORITHMS, CODECS):
        for name, kind in registry.all().items():
            assert kind.name == name
            assert len(first_line(kind)) > 10


def test_a_misspelt_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"algorithm 'fedmb': expected a known algorithm \(did you mean 'fedmd'\?\)"):
        ALGORITHMS.get("fedmb")
    with pytest.raises(ConfigError, match=r"known: .*fp16.*raw"):
        CODECS.get("zzz")


def test_errors_say_value_rule_and_cure() -> None:
    assert str(FedstillError("value", "rule", "cure")) == "value: rule (cure)"
    assert str(FedstillError("value")) == "value"
    assert nearest("x", []) == "known: none"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check.positive("why", x=0.0), r"x=0\.0: expected > 0 \(why\)"),
        (lambda: check.positive(x=math.nan), "x=nan: expected > 0"),
        (lambda: check.positive(x=math.inf), "x=inf"),
        (lambda: check.at_least(1, x=2, y=0), "y=0: expected >= 1"),
        (lambda: check.at_least(0, x=math.nan), "x=nan"),
        (lambda: check.fraction(x=0.0), "expected 0 < value <= 1"),
        (lambda: check.fraction(x=1.1), "expected 0 < value <= 1"),
        (lambda: check.one_of(("a", "b"), x="c"), "x='c': expected one of a, b"),
    ],
)
def test_checks(call: Callable[[], None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_checks_let_good_values_pass() -> None:
    check.positive(x=1e-9)
    check.at_least(1, x=1)
    check.fraction(x=1.0)
    check.one_of(("a",), x="a")
