"""Shared by all tests."""

from functools import cache

import pytest
from hypothesis import settings

# How long an example takes is a matter of what else the machine does.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


def pytest_collection_modifyitems(items):
    """Begin with the longest, so that no process is left alone with them at the end."""
    longest = ("walkthrough", "results", "kit", "training", "distributed")
    names = {f"test_{name}.py" for name in longest}
    items.sort(key=lambda item: item.path.name not in names)


def pytest_runtest_setup(item):
    """Skip what needs a card where there is none."""
    if item.get_closest_marker("gpu") and (reason := card_missing()):
        pytest.skip(reason)


@cache
def card_missing() -> str | None:
    """Why no NVIDIA card can be used here; None: one can."""
    try:
        import torch  # here: most tests need none
    except ModuleNotFoundError:
        return "needs an NVIDIA card, and torch to use it: torch is not installed"
    return None if torch.cuda.is_available() else "needs an NVIDIA card: torch finds none here"
