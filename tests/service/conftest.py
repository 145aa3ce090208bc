"""Shared by the tests of the online half."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Loaded here, for pytest parses each module of hypothesis when it is loaded, and in CPython 3.11
# ast.parse fails while another thread is in it (python/cpython#106905): hypothesis itself would
# load this in the middle of a test, beside threads of ours.
import hypothesis.internal.conjecture.optimiser  # noqa: F401
import pytest

from service.app import create_app
from service.engines import openvino
from service.serving.default_model import DEFAULT_NAME
from service.settings import Settings
from tests.bundles import MIX, STYLE, write_bundle
from tests.service.client import Client
from tests.service.triton import Repository, Triton, triton_over


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Find garbage now, for the same reason: what is said of a lost task parses its source."""
    gc.collect()


@pytest.fixture(autouse=True)
def _defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the developer's shell are not the tests'."""
    for name in [name for name in os.environ if name.startswith(("SID_", "OTEL_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO takes graphs in bfloat16, also where the processor would compute them in float32."""
    monkeypatch.setattr(openvino, "capabilities", lambda: ["FP32", "BF16"])


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


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Bundles that the shared Triton server serves; nobody changes them."""
    models = tmp_path_factory.mktemp("repository")
    write_bundle(models, "grey")
    write_bundle(models, "colour", channels=3, resolution=16)
    write_bundle(models, "plain", classes=[])
    write_bundle(models, "styled", extra=[STYLE, MIX], latent_shape=(4, 8, 8), resolution=16)
    (models / DEFAULT_NAME).write_text("grey")  # Triton passes the file by
    return Repository(models)


@pytest.fixture(scope="session")
def triton(repository: Repository) -> Iterator[Triton]:
    """The real Triton server over `repository`; nobody stops it or changes what it serves."""
    with triton_over(repository.models) as server:
        yield server
