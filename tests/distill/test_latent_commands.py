"""Latents go the whole way by the commands: images to latents, a teacher, its student, a bundle."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from distill.autoencoders import save_light_decoder, weights_sha256
from distill.checkpoints import load_network, load_state, save_network
from distill.errors import UserError
from distill.networks.light_decoder import LightDecoder, LightDecoderLayout
from service.bundle import load_bundle
from tests.distill.command_line import sid_distill
from tests.distill.tiny_recipe import tiny_recipe
from tests.latents import NETWORK, write_autoencoder, write_latent_generator

SMALL = NETWORK | {"img_resolution": 4, "attn_resolutions": [], "logvar_channels": 8}
LOOP = {"total_images": 32, "batch": 16, "microbatch": 8}


pytestmark = pytest.mark.usefixtures("memory_stays_as_it_is")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of 256 images 32x32, dark and light ones; an autoencoder; and latents by it."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for number, name in enumerate(("dark", "light")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(128):
            pixels = random.integers(0, 120, (32, 32, 3), np.uint8) + np.uint8(120 * number)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    write_autoencoder(folder / "tiny.safetensors", licence="MIT")
    make_latents(folder / "images", folder / "tiny.safetensors", folder / "latents")
    return folder


def make_latents(images, autoencoder, out):
    options = ("--resolution", 32, "--device", "cpu", "--out", out)
    return sid_distill("latents", "--data", images, "--autoencoder", autoencoder, *options)


def recipe_for(folder, autoencoder, network=None, **sections):
    path = folder / "latents.toml"
    entry = f"autoencoder = {json.dumps(str(autoencoder))}\n" if autoencoder else ""
    sections = sections or {"teacher": LOOP, "sid": LOOP | {"sigma_init": 2.5}}
    path.write_text(entry + tiny_recipe(SMALL | (network or {}), "CC-BY-4.0", **sections))
    return path


def weights_of(run):
    return load_state(run / "state.pt")["training"]


def assert_same(a, b):
    if isinstance(a, dict):
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_from_images_to_a_bundle(data, tmp_path):
    recipe = recipe_for(
        tmp_path, data / "tiny.safetensors",
        teacher=LOOP | {"total_images": 160, "warmup": 0, "lr": 1e-2},
        sida=LOOP | {"sigma_init": 2.5, "frozen_images": 0, "sid_images": 0, "augment": 0},
    )  # fmt: skip
    sid_distill(
        "features", "--data", data / "images", "--resolution", 32, "--epochs", 1,
        "--out", tmp_path / "eye.safetensors",
    )  # fmt: skip
    options = ("--recipe", recipe, "--device", "cpu", "--data", data / "latents")
    teacher = tmp_path / "t" / "network.safetensors"
    sid_distill("teacher", *options, "--out", tmp_path / "t")
    network, metadata = load_network(teacher)
    assert network.config.latent_shape == (4, 4, 4)
    assert metadata["latents"]["autoencoder"] == "tiny"
    with Image.open(next((tmp_path / "t" / "samples").glob("*.png"))) as sheet:
        assert sheet.size == (10 * 32 * 2, 2 * 32 * 2)  # ten columns, a row a class, doubled
        assert sheet.mode == "RGB"

    student = tmp_path / "s" / "network.safetensors"
    run = ("run", *options, "--features", "none", "--teacher", teacher)
    sid_distill(*run, "--out", tmp_path / "s")
    eye = ("--features", tmp_path / "eye.safetensors")
    measured = sid_distill(
        "evaluate", student, *eye, "--data", data / "images", "--images", 256, "--device", "cpu"
    )
    assert '"evaluations": 1' in measured
    space = load_network(student)[1]["latents"]["sha256"]
    assert f'"decoder_sha256": "{space}"' in measured
    report = ("--images", 4, "--pictures", 2, "--device", "cpu")
    assert "report.html" in sid_distill("analyze", tmp_path / "s", *eye, *report)
    decoder, light = LightDecoder(LightDecoderLayout(width=8)), tmp_path / "light.safetensors"
    save_light_decoder(light, decoder, {"latent_space": space})
    by_light = ("--autoencoder", light)
    measured = sid_distill(
        "evaluate", student, *eye, "--data", data / "images", "--images", 256, "--device", "cpu",
        *by_light,
    )  # fmt: skip
    assert f'"decoder_sha256": "{weights_sha256(decoder)}"' in measured
    assert "report.html" in sid_distill("analyze", tmp_path / "s", *eye, *report, *by_light)

    models = tmp_path / "models"
    sid_distill("publish", student, "--name", "small", "--models", models)
    manifest = load_bundle(models / "small").manifest
    assert (manifest.latent_shape, manifest.image_shape) == ((4, 4, 4), (32, 32, 3))
    assert manifest.licence == "CC-BY-4.0"
    assert str(tmp_path) not in manifest.training["latents"]  # nobody else has that folder


@pytest.mark.slow
@pytest.mark.parametrize("preconditioning", ["edm", pytest.param("flow", marks=pytest.mark.long)])
def test_the_latents_of_a_step_depend_on_seed_and_images_seen_alone(
    data, tmp_path, preconditioning
):
    recipe = recipe_for(
        tmp_path, data / "tiny.safetensors", {"preconditioning": preconditioning},
        teacher=LOOP | {"decay_after": 1000},
        sida=LOOP | {"sigma_init": 2.5, "frozen_images": 0, "sid_images": 0, "augment": 0},
    )  # fmt: skip
    options = ("--recipe", recipe, "--device", "cpu", "--data", data / "latents", "--out")
    student = ("--features", "none", "--teacher", tmp_path / "whole-teacher/network.safetensors")
    for command, further in (("teacher", ()), ("run", student)):
        whole, parted = tmp_path / f"whole-{command}", tmp_path / f"parted-{command}"
        sid_distill(command, *options, whole, *further)
        sid_distill(command, *options, parted, *further, "--images", 16)
        sid_distill(command, *options, parted, *further)
        assert_same(weights_of(whole), weights_of(parted))


def test_what_does_not_fit_is_refused_in_one_line(data, tmp_path):
    other = write_autoencoder(tmp_path / "other.safetensors", seed=1)
    wide = write_autoencoder(tmp_path / "wide.safetensors", latent_channels=3)
    tiny, latents = data / "tiny.safetensors", data / "latents"

    def train(autoencoder, source, **network):
        recipe = recipe_for(tmp_path, autoencoder, network)
        sid_distill("teacher", "--recipe", recipe, "--data", source, "--out", tmp_path / "t")

    with pytest.raises(UserError, match=r"latents holds latents of an autoencoder, and images"):
        train(None, latents)
    with pytest.raises(UserError, match=r"images holds no latents, and the network learns latents"):
        train(tiny, data / "images")
    with pytest.raises(UserError, match=r"are of another autoencoder \(tiny\) than .*other"):
        train(other, latents)
    with pytest.raises(UserError, match=r"has latents of 4 channels, the network has 8: both"):
        train(tiny, latents, img_channels=8)
    with pytest.raises(UserError, match=r"no autoencoder at .*gone.safetensors"):
        train(tmp_path / "gone.safetensors", latents)
    with pytest.raises(UserError, match=r"holds latents of an autoencoder, and images are needed"):
        sid_distill("reference", "--data", latents, "--features", "fashion-cnn", "--out", "x")
    with pytest.raises(UserError, match=r"--resolution 36: .* a multiple of 8 is needed"):
        sid_distill(
            "latents", "--data", data / "images", "--autoencoder", tiny, "--resolution", 36,
            "--out", tmp_path / "l",
        )  # fmt: skip

    generator = write_latent_generator(tmp_path / "g.safetensors", tiny)
    publish = ("publish", generator, "--name", "x", "--models", tmp_path / "models")
    with pytest.raises(UserError, match=r"that .* draws are of another autoencoder \(tiny\)"):
        sid_distill(*publish, "--autoencoder", other)
    with pytest.raises(UserError, match=r"are of another autoencoder"):
        sid_distill(*publish, "--autoencoder", wide)
    recipe = recipe_for(tmp_path, tiny)
    teach = ("run", "--recipe", recipe, "--out", tmp_path / "r", "--teacher")
    with pytest.raises(UserError, match="is a generator: --teacher takes a teacher"):
        sid_distill(*teach, generator)
    network, header = load_network(generator)
    scales = header["latents"] | {"scale": [1.0] * 4}
    teacher = tmp_path / "t.safetensors"
    save_network(teacher, network, header | {"role": "teacher", "latents": scales})
    with pytest.raises(UserError, match="draws latents of another scale than the teacher"):
        sid_distill(*teach, teacher, "--generator", generator)


def test_a_bundle_goes_under_the_licence_of_both_its_networks(tmp_path):
    tiny = write_autoencoder(tmp_path / "tiny.safetensors")
    generator = write_latent_generator(tmp_path / "g.safetensors", tiny)
    publish = ("publish", generator, "--name", "x", "--models", tmp_path / "models")
    with pytest.raises(UserError, match="licence of the autoencoder tiny is not known: say"):
        sid_distill(*publish)
    write_autoencoder(tiny, licence="CC-BY-NC-4.0")
    with pytest.raises(UserError, match=r"--licence MIT does not fit.*CC-BY-NC-4\.0"):
        sid_distill(*publish, "--licence", "MIT")
