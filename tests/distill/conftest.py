"""Tiny networks run faster on one thread than on many, and alike whatever the machine."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)
