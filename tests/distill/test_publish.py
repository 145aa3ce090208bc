"""`sid-distill publish`: whatever `run` has trained is published, under the licence it has."""

import shutil

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from distill.checkpoints import load_network, save_network
from distill.cli import app
from distill.errors import UserError
from distill.export.onnx import export_onnx
from distill.networks import Denoiser, NetworkConfig
from distill.recipe import RECIPES
from service.bundle import load_bundle

SMALL_RUN = ("--images", 2, "--batch", 2, "--precision", "fp32", "--features", "none")


def sid_distill(*arguments):
    """Run a command in this process; raise the UserError that it would end with."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.exception or result.output
    return result.output


def toy():
    torch.manual_seed(0)
    config = NetworkConfig(
        img_resolution=8, img_channels=1, label_dim=3, augment_dim=9, model_channels=8,
        channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.1,
    )  # fmt: skip
    network = Denoiser(config)
    with torch.no_grad():  # an untrained network's output layer is near zero: wake it up
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def save_toy(path, **facts):
    save_network(path, toy(), {"role": "teacher", "classes": ["a", "b", "c"]} | facts)
    return path


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """The toy as a generator, exported once, for exporting takes seconds."""
    folder = tmp_path_factory.mktemp("graphs")
    for name in ("model.onnx", "model.cpu.onnx"):
        export_onnx(toy(), 2.5, folder / name, cpu="cpu" in name)
    return folder


@pytest.fixture
def publish_toy(graphs, tmp_path, monkeypatch):
    """A function that publishes the toy under the facts in a network's header."""

    def exported(_network, _sigma_init, path, **_options):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(graphs / path.name, path)

    monkeypatch.setattr("distill.export.publish.export_onnx", exported)

    def publish(network, *options):
        _, facts = load_network(network)
        save_network(network, toy(), facts)
        said = sid_distill(
            "publish", network, "--name", "toy", "--models", tmp_path / "models", *options
        )
        return load_bundle(tmp_path / "models" / "toy").manifest, said

    return publish


def distil(folder, *options, **facts):
    """The generator that `run` makes of the toy as a teacher with these facts."""
    teacher = save_toy(folder / "teacher.safetensors", **facts)
    sid_distill("run", "--teacher", teacher, "--out", folder, *SMALL_RUN, *options)
    return folder / "network.safetensors"


@pytest.mark.parametrize("recipe", sorted(file.stem for file in RECIPES.glob("*.toml")))
def test_what_a_shipped_recipe_has_distilled_is_published(tmp_path, publish_toy, recipe):
    manifest, _ = publish_toy(distil(tmp_path, "--recipe", recipe), "--licence", "MIT")
    assert manifest.training["recipe"] == recipe
    assert manifest.training.get("generator_betas") == {"ffhq64": "[0.9, 0.999]"}.get(recipe)


def test_what_was_distilled_with_every_option_of_run_is_published(tmp_path, publish_toy):
    options = {
        "--microbatch": 1, "--lr": 1e-6, "--fake-lr": 1e-6, "--cooldown": 2, "--alpha": 1.2,
        "--t-max": 700, "--weighting": "none", "--sigma-init": 2.5, "--augment": 0.1,
        "--dropout": 0.2, "--class-frequencies": "1,2,0.5", "--ema-halflife": 10, "--seed": 2**63,
        "--device": "cpu", "--recipe": "ffhq64",
    }  # fmt: skip
    elsewhere = {"--out", "--teacher", "--reference", "--shard", *SMALL_RUN}
    command = get_command(app).commands["run"]
    known = {name for option in command.params for name in option.opts} - {"--help"}
    assert known <= elsewhere.union(options), "an option that this test does not know"
    generator = distil(tmp_path, *(part for option in options.items() for part in option))
    manifest, _ = publish_toy(generator, "--licence", "MIT")
    assert manifest.training["class_frequencies"] == "[1.0, 2.0, 0.5]"
    assert manifest.training["seed"] == 2**63
