"""Whoever pastes a command that the program printed gets what it promised."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import distill
from distill.checkpoints import load_network, save_network
from distill.cli import app
from distill.errors import UserError
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.recipe import RECIPES, load_recipe, nearest_recipe
from service.cli import app as sid
from tests.reference_numbers import FIXTURES

SMALL = ["--images", "2", "--batch", "2", "--precision", "float32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder whose name needs quotes in a shell."""
    (tmp_path / "my models").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def say(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.exception or result.output
    return result.output


def printed(output):
    """The command in what was printed."""
    (command,) = re.findall(r"\b(?:sid|sid-distill) [a-z].*", output)
    return command


def paste(command, *more):
    program, *words = shlex.split(command)
    result = CliRunner().invoke({"sid": sid, "sid-distill": app}[program], [*words, *more])
    assert result.exit_code == 0, result.exception or result.output


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp", "adm"])
def test_the_command_that_import_prints_distils(folder, name):
    options = ["--name", name, "--role", "teacher", "--out", folder / "my models"]
    command = printed(say("import", FIXTURES / f"{name}.pkl", *options))
    paste(command, *SMALL)
    _, metadata = load_network(Path("runs", name, "network.safetensors"))
    assert metadata["role"] == "generator"
    assert f"--recipe {metadata['recipe']}" in command


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.stem)
def test_a_released_teacher_is_distilled_by_the_recipe_that_is_for_it(file):
    source = {"ffhq64": "edm-ffhq-64x64-uncond-vp.pkl", "afhqv2-64": "edm-afhqv2-64x64.pkl"}
    recipe, named = load_recipe(file.stem), source.get(file.stem, "edm.pkl")
    name, _ = nearest_recipe(recipe.network, named, latents=recipe.autoencoder is not None)
    assert name == file.stem.removesuffix("-sida"), "which starts from a generator of its own"


@pytest.mark.long
def test_the_command_that_import_prints_draws(folder):
    options = ["--name", "grey", "--role", "generator", "--models", folder / "my models"]
    paste(printed(say("import", FIXTURES / "ncsnpp.pkl", *options)))
    assert list(folder.glob("*.png"))


def fashion_network(role):
    """A network of Fashion-MNIST's size, whose images differ by class and noise."""
    torch.manual_seed(0)
    network = Denoiser(
        EdmConfig(
            img_resolution=28, img_channels=1, label_dim=10, model_channels=8, channel_mult=(1,),
            num_blocks=1, attn_resolutions=(),
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = Path("my models", f"{role}.safetensors")
    shipped = Path(distill.__file__).parent / "pretrained" / "fashion-teacher.safetensors"
    classes = load_network(shipped)[1]["classes"]
    metadata = {"role": role, "classes": classes, "sigma_init": 2.5, "licence": "CC0-1.0"}
    save_network(path, network, metadata)
    return path


@pytest.mark.long
def test_the_commands_that_publish_prints_measure_and_draw(folder):
    teacher, generator = fashion_network("teacher"), fashion_network("generator")
    options = ["--name", "toy", "--models", folder / "my models"]
    for network in (generator, teacher):
        with pytest.raises(UserError, match=rf"{network.stem}.quality.json is missing") as error:
            say("publish", generator, "--teacher", teacher, *options)
        command = printed(str(error.value)).partition(" (with")[0]
        paste(command, "--images", "256", "--device", "cpu")
    paste(printed(say("publish", generator, "--teacher", teacher, *options)))
    assert list(folder.glob("*.png"))


def test_whatever_is_said_of_a_command_names_one_that_is_there():
    """In every text of the offline half: 'sid-distill NAME --option'."""
    commands = get_command(app).commands
    texts = [
        node.value
        for file in Path(distill.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    named = [match for text in texts for match in re.findall(r"'sid-distill ([^']*)'", text)]
    assert len(named) > 10
    for words in map(str.split, named):
        options = {name for option in commands[words[0]].params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= options, words
