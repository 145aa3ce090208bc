"""Shared by the tests of the online half."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.app import create_app
from service.settings import Settings
from tests.bundles import write_bundle
from tests.service.client import Client


@pytest.fixture(autouse=True)
def _defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the developer's shell are not the tests'."""
    for name in [name for name in os.environ if name.startswith("SID_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder that holds one class-conditional model, `tiny`."""
    folder = tmp_path / "models"
    write_bundle(folder)
    return folder


@pytest.fixture
def settings(models: Path) -> Settings:
    return Settings(models=models, threads=1)


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    """A client of the application, in this process and with its lifespan."""
    with Client(create_app(settings)) as client:
        yield client
