"""Tiny networks run faster on one thread than on many, and alike whatever the machine."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def memory_stays_as_it_is(monkeypatch):
    """The commands would rule all of this process, and other tests look at memory."""
    for command in ("run", "teacher", "regress"):
        monkeypatch.setattr(f"distill.commands.{command}.keep_freed_memory", lambda: None)
