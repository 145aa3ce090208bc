"""What a model of large images changes where nobody has set anything: batches, times, probes."""

import asyncio

import pytest

from distill.export.triton import max_batch_size, triton_config
from service.app import create_app
from service.bulk.server import ServerSource
from service.bundle import load_bundle
from service.client import ModelCard
from service.engines.cuda import CudaEngine
from service.engines.onnx import OnnxEngine
from service.serving import catalogue
from service.serving.supervision import Supervisor, default_seconds
from service.settings import Settings
from tests.bundles import write_bundle
from tests.service.client import Client


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """By their sides, of pixels; the latents of the largest are of another shape."""
    models = tmp_path_factory.mktemp("models")
    write_bundle(models, "small", channels=3, resolution=64)
    write_bundle(models, "medium", channels=3, resolution=256)
    write_bundle(models, "large", channels=3, resolution=512, latent_shape=(4, 64, 64))
    return {name: load_bundle(models / name) for name in ("small", "medium", "large")}


def test_batches_of_large_images_are_smaller(bundles):
    options = {"threads": 1, "concurrency": 1}
    most = {name: OnnxEngine(one, **options).max_batch_size for name, one in bundles.items()}
    assert most == {"small": 8, "medium": 2, "large": 1}
    assert OnnxEngine(bundles["large"], **options, max_batch_size=3).max_batch_size == 3
    assert CudaEngine(bundles["large"], **options).max_batch_size == 4
    sizes = {name: max_batch_size(one.manifest.images) for name, one in bundles.items()}
    assert sizes == {"small": 32, "medium": 16, "large": 4}
    assert "max_batch_size: 4" in triton_config(bundles["large"].manifest)


def test_a_large_image_may_take_longer_and_the_canary_says_how_long(bundles):
    assert default_seconds(bundles["small"].manifest) == 30
    assert default_seconds(bundles["large"].manifest) == 480

    async def opened(name, seconds=None):
        engine = OnnxEngine(bundles[name], threads=1, concurrency=1)
        supervisor = Supervisor(engine, bundles[name], seconds=seconds, on_change=lambda _: None)
        await supervisor.open()
        await supervisor.close()
        return supervisor.seconds

    assert asyncio.run(opened("small")) == 30
    assert 30 <= asyncio.run(opened("large")) < 480  # its canary takes a fraction of a second
    assert asyncio.run(opened("large", 7)) == 7


def test_no_probe_waits_for_an_image_that_takes_long(bundles, monkeypatch):
    """A model is ready while its canary is drawn, unless it is known to be down."""
    folder = bundles["small"].folder.parent
    app = create_app(Settings(models=folder, threads=1))
    with Client(app) as client:

        async def takes_long(*_, **__):
            await asyncio.Event().wait()

        monkeypatch.setattr(Supervisor, "check", takes_long)
        monkeypatch.setattr(catalogue, "_PROBE_SECONDS", 0.01)
        assert client.get("/readyz").status_code == 200
        app.state.catalogue.models["large"].pool.supervisors[0].down = "it hangs"
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["models"] == {"large": "it hangs"}


def test_bulk_asks_a_server_for_fewer_large_images_at_a_time(bundles):
    def piece(name):
        height, _, channels = bundles[name].manifest.images
        card = ModelCard(name, 1, "", name, (), height, channels, "MIT", "")
        return ServerSource(None, None, card, "png", {}).piece

    assert {name: piece(name) for name in bundles} == {"small": 16, "medium": 2, "large": 1}
