"""Shared by all tests."""

import fcntl
import os
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is a matter of what else the machine does.
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")


@pytest.fixture(scope="session")
def latent_models(tmp_path_factory) -> Path:
    """A folder of one model, `latent`: latents 4x8x8, images 16x16x3. Nobody changes it.

    It is a random network with a random decoder behind it, by the real exporter, which takes many
    seconds: it is written once for all processes of pytest-xdist.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= "latent"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "models" / "latent").is_dir():  # it is there as a whole or not at all
            from tests.latents import write_latent_bundle  # here: most tests need no torch

            write_latent_bundle(folder, factor=2, channel_mult=[1], attn_resolutions=[])
    return folder / "models"


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
