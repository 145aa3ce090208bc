"""A model of latents, as `publish` makes it with its decoder, served, fetched and drawn in bulk."""

import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from service.bundle import load_bundle
from service.client import Client
from tests.service import test_cli
from tests.service.test_process import serving

pytestmark = pytest.mark.slow
sid = test_cli.sid


@pytest.fixture(scope="module")
def url(latent_models, tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("latents") / "log"
    with serving(latent_models, log=log) as (_, url):
        yield url


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def test_its_images_are_the_golden_ones_and_larger_than_its_noise(url, latent_models):
    manifest = load_bundle(latent_models / "latent").manifest
    assert (manifest.latent_shape, manifest.image_shape) == ((4, 8, 8), (16, 16, 3))
    for golden in manifest.golden.images[:2]:
        asked = {"class_label": golden.class_label, "seed": golden.seed}
        answer = httpx.post(f"{url}/generate", json=asked)
        difference = pixels(answer.content).astype(int) - golden.pixels()
        assert manifest.graphs["model.cpu.onnx"].allowed.allow(np.abs(difference))
    assert httpx.get(f"{url}/readyz").status_code == 200
    card = httpx.get(f"{url}/models/latent").json()
    assert (card["images"], card["resolution"]) == ([16, 16, 3], 16)


def test_the_client_and_bulk_draw_what_the_server_draws(sid, url, latent_models, tmp_path):
    with Client(url) as client:
        images = client.batch(3, 4, model="latent")
        assert {pixels(image.content).shape for image in images} == {(16, 16, 3)}
    for place in (["--url", url], ["--models", str(latent_models)]):
        out = tmp_path / place[0].strip("-")
        done = sid("generate", *place, "--seeds", "3-6", "-o", str(out))
        assert done.status == 0, done.stderr
        drawn = {file.read_bytes() for file in out.rglob("*.png")}
        assert drawn == {image.content for image in images}
