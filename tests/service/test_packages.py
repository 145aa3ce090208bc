"""What the server builds on beyond its promises is held to the releases that were tested."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {needed.name: needed for needed in map(Requirement, PROJECT["dependencies"])}


@pytest.mark.parametrize("name", ["uvicorn", "httptools", "fastapi", "starlette"])
def test_what_is_subclassed_by_its_insides_is_pinned_from_above(name):
    """A release that renames an attribute would break the wire, and not only for new checkouts."""
    specifier = NEEDED[name].specifier
    (tested,) = (Version(one.version.removesuffix(".*")) for one in specifier)
    assert specifier.contains(f"{tested}.1")
    assert not specifier.contains(f"{tested.major}.{tested.minor + 1}")
