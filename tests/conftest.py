"""Shared by all tests."""

from hypothesis import settings

# How long an example takes is a matter of what else the machine does.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


def pytest_collection_modifyitems(items):
    """Begin with the longest, so that no process is left alone with them at the end."""
    longest = ("test_walkthrough.py", "test_results.py")
    items.sort(key=lambda item: item.path.name not in longest)
