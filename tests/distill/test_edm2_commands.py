"""EDM2's networks go the whole way by the commands: pixels to a graph, latents to a student."""

import pytest
import torch
from PIL import Image

from distill.checkpoints import load_network
from distill.errors import UserError
from distill.export.gate import draw_reference_images, validate
from distill.export.one_step import PixelGenerator
from distill.export.onnx import export_onnx
from distill.networks import Denoiser, read_config
from service.bundle import BASELINE, CUDA, load_bundle
from tests.distill.command_line import sid_distill
from tests.distill.tiny_recipe import tiny_recipe
from tests.latents import write_autoencoder
from tests.reference_numbers import FIXTURES

SHAPE = {
    "architecture": "edm2", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1,
    "attn_resolutions": [4], "channels_per_head": 8,
}  # fmt: skip
STEPS = {"total_images": 32, "batch": 16}


pytestmark = pytest.mark.usefixtures("memory_stays_as_it_is")


@pytest.mark.slow
def test_it_is_trained_started_and_distilled(tmp_path):
    for number, name in enumerate(("dark", "light")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.new("L", (8, 8), 60 + 120 * number + 5 * i)
            image.save(tmp_path / "images" / name / f"{i}.png")
    recipe = tmp_path / "edm2.toml"
    recipe.write_text(
        tiny_recipe(
            SHAPE,
            "CC-BY-NC-4.0",
            teacher=STEPS | {"total_images": 320, "decay_after": 64},
            regression=STEPS | {"pairs": 16, "steps": 2, "sigma_init": 2.5},
            sid=STEPS | {"noise_mean": -0.4, "noise_std": 1.0},
        )
    )
    options = ("--recipe", recipe, "--device", "cpu")
    sid_distill("teacher", *options, "--data", tmp_path / "images", "--out", tmp_path / "t")
    teacher = tmp_path / "t" / "network.safetensors"
    assert load_network(teacher)[0].config.logvar_channels == 128
    sid_distill("regress", *options, "--teacher", teacher, "--out", tmp_path / "r")
    start = tmp_path / "r" / "network.safetensors"
    distil = ("run", *options, "--features", "none", "--teacher", teacher, "--generator", start)
    sid_distill(*distil, "--out", tmp_path / "g", "--images", 16)
    sid_distill(*distil, "--out", tmp_path / "g")  # goes on from the state at 16 images
    generator = tmp_path / "g" / "network.safetensors"
    network, metadata = load_network(generator)
    assert network.config.logvar_channels == 0
    assert (metadata["images_seen"], metadata["licence"]) == (32, "CC-BY-NC-4.0")
    with pytest.raises(UserError, match=r"--licence Apache-2\.0 does not fit"):
        sid_distill("publish", generator, "--name", "edm2", "--licence", "Apache-2.0")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(BASELINE, marks=pytest.mark.long), CUDA])
def test_its_graph_passes_the_gate(tmp_path, name):
    torch.manual_seed(0)
    network = Denoiser(
        read_config(SHAPE | {"img_resolution": 8, "img_channels": 3, "label_dim": 3})
    ).eval()
    for part, parameter in network.named_parameters():
        if part.endswith("gain"):  # 0 in a fresh network
            torch.nn.init.constant_(parameter, 0.5)
    path, cuda = tmp_path / name, name == CUDA
    export_onnx(network, 2.5, path, "float16" if cuda else "float32", cuda=cuda)
    expected = draw_reference_images(PixelGenerator(network, 2.5), None)
    graph, _ = validate(path, expected)
    assert graph.measured.difference <= (2 if cuda else 1)


@pytest.mark.long
def test_a_teacher_of_latents_is_distilled_and_published_with_its_decoder(tmp_path):
    recipe = tmp_path / "latents.toml"
    shape = {"img_resolution": 16, "img_channels": 4, "label_dim": 10}
    sid = {"total_images": 2, "batch": 2, "sigma_init": 2.5}
    recipe.write_text(tiny_recipe(SHAPE | shape | {"attn_resolutions": [8]}, sid=sid))
    teacher, models = FIXTURES / "edm2.pkl", tmp_path / "models"
    autoencoder = write_autoencoder(tmp_path / "vae.safetensors", factor=2, licence="MIT")
    options = ("--features", "none", "--out", tmp_path, "--device", "cpu")
    run = ("run", "--recipe", recipe, "--teacher", teacher, *options)
    with pytest.raises(UserError, match="latents of stabilityai/sd-vae-ft-mse"):
        sid_distill(*run)
    sid_distill(*run, "--autoencoder", autoencoder)
    generator = tmp_path / "network.safetensors"
    network, metadata = load_network(generator)
    assert network.config == load_network(teacher)[0].config.for_drawing()
    assert metadata["licence"] == "CC-BY-NC-SA-4.0"
    assert metadata["latents"]["autoencoder"] == "stabilityai/sd-vae-ft-mse"
    assert metadata["latents"]["file"] == str(autoencoder)
    sid_distill("publish", generator, "--name", "x", "--models", models)
    manifest = load_bundle(models / "x").manifest
    assert (manifest.latent_shape, manifest.image_shape) == ((4, 16, 16), (32, 32, 3))
    assert manifest.licence == "CC-BY-NC-SA-4.0"
