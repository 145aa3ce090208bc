"""Shared by the tests of plans."""

import pytest

from service.plan import search


@pytest.fixture
def short_trials(monkeypatch):
    """The search decides by a quarter of the requests: what holds by chance is not what it shows.

    Plans in full are made by the commands.
    """
    monkeypatch.setattr(search, "_TRIAL", search._TRIAL // 4)
    monkeypatch.setattr(search, "_FINAL", search._FINAL // 4)
