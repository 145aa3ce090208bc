"""The values of the chart: each explained, each in the schema, each in use."""

import json
import re
from itertools import pairwise

import pytest

from docs import generate
from tests.deploy.chart import CHART, VALUES, WAYS
from tests.deploy.shipped import ROOT

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
TEMPLATES = "\n".join(path.read_text() for path in sorted((CHART / "templates").iterdir()))
SETTINGS = SCHEMA["properties"]["gateway"]["properties"]["settings"]["properties"]
# Handed on as they are; what may stand in them is Kubernetes' own.
WHOLE = {"resources", "nodeSelector", "tolerations", "annotations", "labels", "settings"}


def leaves(values, path=()):
    """Paths of all values that are no groups of others."""
    for key, value in values.items():
        if isinstance(value, dict) and key not in WHOLE:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


LEAVES = list(leaves(VALUES))


def test_the_schema_knows_the_settings_that_there_are_now():
    text = (CHART / "values.schema.json").read_text()
    assert text == generate.chart_schema(), "run `make docs`"


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_a_value_is_in_the_schema_and_in_use(path):
    schema = SCHEMA
    for key in path:
        assert schema["additionalProperties"] is False
        schema = schema["properties"][key]
    # Templates reach a value by its path, or by its last parts of a group in a variable.
    group, name = path[-2:] if len(path) > 1 else ("Values", path[0])
    variable = {"autoscaling": "auto", "networkPolicy": "policy"}.get(group, group)
    used = rf"(\b{group}|\${variable}|\.image|\.values|)\.{name}\b"
    assert re.search(used, TEMPLATES), f"no template uses {'.'.join(path)}"


def test_the_schema_has_no_value_that_the_file_does_not_show():
    def known(schema, path=()):
        for key, its in schema["properties"].items():
            if "properties" in its and key not in WHOLE:
                yield from known(its, (*path, key))
            else:
                yield (*path, key)

    assert set(known(SCHEMA)) - {("global",)} == set(LEAVES)  # Helm's own, of a parent chart


def test_each_value_has_a_comment():
    """Above it, or above the first of a few that belong together."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    told = 0
    for before, line in pairwise(lines):
        if (key := re.match(r"\s*([a-zA-Z]+):( |$)", line)) and key[1] in {p[-1] for p in LEAVES}:
            pairs = {("maxUnavailable", "maxSurge"), ("tag", "repository")}
            follows = any(key[1] == b and before.strip().startswith(a) for b, a in pairs)
            assert before.lstrip().startswith("#") or follows, f"{line.strip()} has no comment"
            told += 1
    assert told == len(LEAVES)


def test_every_file_of_values_is_rendered_by_the_tests():
    files = {path.name for path in CHART.glob("values-*.yaml")}
    assert {one for sources in WAYS.values() for one in sources if isinstance(one, str)} == files


def test_the_documents_name_values_that_there_are():
    text = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"--set(?:-string)? ([\w.]+)=", text))
    groups = "|".join({path[0] for path in LEAVES if len(path) > 1})
    named |= set(re.findall(rf"`((?:{groups})\.[\w.]+)", text))
    assert len(named) > 8
    settings = {("gateway", "settings", name) for name in SETTINGS}
    assert {tuple(one.split(".")) for one in named} <= {*LEAVES, *settings}
    files = set(re.findall(r"`(values-[\w-]+\.yaml)`", text))
    assert files == {path.name for path in CHART.glob("values-*.yaml")}
