"""Expressions come apart where PromQL says so."""

import pytest

from tests.deploy.promql import alternatives, conditions, names, operands


@pytest.mark.parametrize(
    ("expr", "left", "joined"),
    [
        ("a / b > 0.5", ["a / b"], ["a / b > bool 0.5"]),
        (
            '(a{x="> or"} > 2 * 3 and b[5m] >= 1) or (c == 0)',
            ['a{x="> or"}', "b[5m]", "c"],
            ['(a{x="> or"} > bool 2 * 3 and b[5m] >= bool 1)', "(c == bool 0)"],
        ),
        ("a == 0 or (count(b) unless count(c))", ["a", "count(b)", "count(c)"], ["a == bool 0"]),
        ("absent(a{b=~'c'})", ["a{b=~'c'}"], []),
        ("max(a) or on () vector(0)", ["max(a)"], []),
        (
            "sum by (x) (a) / on (x) group_left () b",
            ["sum by (x) (a) / on (x) group_left () b"],
            [],
        ),
    ],
)
def test_expressions_come_apart(expr, left, joined):
    assert operands(expr) == left
    assert conditions(expr) == joined


def test_names_are_those_of_metrics_only():
    expr = 'sum by (model) (rate(a_total{b="c > d"}[5m])) / on (model) group_left () max(e:f) or g'
    assert names(expr) == {"a_total", "e:f", "g"}


def test_each_alternative_of_a_matcher_is_a_selector():
    expr = 'sum(a{b=~"c|d.",e="f"}) / g{h!~"i|j", model=~"$model"}'
    assert alternatives(expr) == {'a{b=~"c"}', 'a{b=~"d."}', 'g{h=~"i"}', 'g{h=~"j"}'}
