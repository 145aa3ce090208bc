"""Which precision a run has where nobody names one, and that it keeps it."""

import json

import pytest
import torch

from distill.checkpoints import load_network, load_settings, load_state, save_network, save_state
from distill.commands.regress import regress
from distill.commands.run import run
from distill.commands.teacher import teacher
from distill.errors import UserError
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.precision import default_precision
from tests.distill.data.test_data import write_images
from tests.distill.tiny_recipe import tiny_recipe

SHORT = {"total_images": 8, "batch": 4, "ema_halflife": 40, "checkpoint_every": 8}
RECIPE = tiny_recipe(
    {"label_dim": 2, "dropout": 0.0},
    teacher=SHORT,
    regression={"pairs": 64, "steps": 2, "sigma_init": 2.5, **SHORT},
    sid={"sigma_init": 2.5, **SHORT},
)


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Start or resume a training in a folder, as its command does; tell in which precision."""
    for command in ("run", "regress", "teacher"):
        # It would rule all of this process, and other tests look at memory.
        monkeypatch.setattr(f"distill.commands.{command}.keep_freed_memory", lambda: None)
    recipe, images, file = (tmp_path / name for name in ("tiny.toml", "images", "t.safetensors"))
    recipe.write_text(RECIPE)
    write_images(images)
    torch.manual_seed(0)
    network = EdmConfig(
        img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
        num_blocks=1, attn_resolutions=(), dropout=0.0,
    )  # fmt: skip
    save_network(file, Denoiser(network), {"role": "teacher", "classes": ["a", "b"]})

    def begin(command=run, **options):
        options = {"recipe": str(recipe), "device": "cpu"} | options
        if command is teacher:
            command(tmp_path / "out", data=images, **options)
        else:
            if command is run:
                options["features"] = "none"
            command(tmp_path / "out", file, **options)
        _, metadata = load_network(tmp_path / "out" / "network.safetensors")
        precision = load_settings(tmp_path / "out" / "state.pt")["precision"]
        assert metadata["precision"] == precision
        return precision

    return begin


CHOICE = "distill.training.precision.default_precision"


@pytest.fixture
def on_a_card(monkeypatch):
    """What a run is given on a card that has bfloat16; a CPU can compute in it too."""
    monkeypatch.setattr(CHOICE, lambda _device: "bfloat16")


def test_a_cpu_computes_in_float32(begin):
    assert default_precision(torch.device("cpu")) == "float32"
    assert begin() == "float32"


@pytest.mark.gpu
def test_a_card_that_has_bfloat16_computes_in_it():
    has_it = torch.cuda.get_device_capability() >= (8, 0)
    assert default_precision(torch.device("cuda")) == ("bfloat16" if has_it else "float32")


@pytest.mark.parametrize("command", [run, regress, pytest.param(teacher, marks=pytest.mark.long)])
@pytest.mark.usefixtures("on_a_card")
def test_a_run_keeps_the_precision_that_it_began_with(command, begin, monkeypatch, capsys):
    assert begin(command) == "bfloat16"
    assert "precision bfloat16" in capsys.readouterr().out
    monkeypatch.setattr(CHOICE, default_precision)
    assert begin(command, images=16) == "bfloat16"
    with pytest.raises(UserError, match="another precision"):
        begin(command, images=24, precision="float32")


@pytest.mark.usefixtures("on_a_card")
def test_a_regression_keeps_the_precision_of_its_pairs(begin, monkeypatch, tmp_path):
    """It may have been stopped while they were drawn, before there was a state."""
    begin(regress)
    monkeypatch.setattr(CHOICE, default_precision)
    (tmp_path / "out" / "state.pt").unlink()
    assert begin(regress) == "bfloat16"


@pytest.mark.usefixtures("on_a_card")
@pytest.mark.parametrize("by", ["option", "recipe"])
def test_whoever_names_a_precision_gets_it(by, begin, tmp_path):
    if by == "option":
        assert begin(precision="float32") == "float32"
    else:
        recipe = tmp_path / "named.toml"
        recipe.write_text(RECIPE + 'precision = "float32"\n')
        assert begin(recipe=str(recipe)) == "float32"


@pytest.mark.parametrize("named", [True, False])
def test_a_run_of_a_card_that_a_cpu_cannot_go_on_with_says_so(named, begin, tmp_path):
    begin()
    state = load_state(tmp_path / "out" / "state.pt")
    settings = json.loads(state["settings"]) | {"precision": "float16"}
    save_state(tmp_path / "out" / "state.pt", state | {"settings": json.dumps(settings)})
    options = {"precision": "float16"} if named else {}
    with pytest.raises(UserError, match="this run began in float16, which needs a CUDA device"):
        begin(images=16, **options)


def test_a_new_run_in_a_cards_precision_is_refused_on_a_cpu(begin):
    with pytest.raises(UserError, match=r"--precision float16 needs a CUDA device.*take float32"):
        begin(precision="float16")
