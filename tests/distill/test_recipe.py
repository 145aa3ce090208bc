"""Shipped recipes say what the paper says; mistakes in one's own end in one line."""

import pytest
import torch

from distill.commands.options import read_recipe
from distill.errors import UserError
from distill.networks import Denoiser
from distill.recipe import RECIPES, load_recipe, override
from distill.training.precision import compute_dtype

# facts of the paper's runs (arXiv 2404.04057, table of hyperparameters; EDM's networks):
# alpha, batch, lr, precision, dropout, augment, million images, million parameters, classes
PAPER = {
    "cifar10-uncond": (1.2, 256, 1e-5, "float32", 0.13, 0.12, 500, 55.7, 0),
    "cifar10-cond": (1.2, 256, 1e-5, "float32", 0.13, 0.12, 800, 55.7, 10),
    "imagenet64": (1.2, 8192, 4e-6, "float16", 0.10, 0.0, 1000, 295.9, 1000),
    "ffhq64": (1.2, 512, 1e-5, "float16", 0.05, 0.15, 500, 61.8, 0),
    "afhqv2-64": (1.0, 512, 5e-6, "float16", 0.05, 0.15, 500, 61.8, 0),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_five_results_have_their_recipes(name):
    alpha, batch, lr, precision, dropout, augment, mimg, parameters, classes = PAPER[name]
    recipe, sid = read_recipe(name)
    assert (sid.alpha, sid.batch, sid.lr, sid.fake_lr) == (alpha, batch, lr, None)
    assert (sid.precision, sid.dropout, sid.augment) == (precision, dropout, augment)
    assert sid.total_images == mimg * 1_000_000
    assert (sid.t_max, sid.sigma_init, sid.weighting, sid.cooldown) == (800, 2.5, "sid", 0)
    assert (sid.fake_loss_scale, sid.generator_loss_scale) == (1, 100)
    assert sid.betas == (0.0, 0.999)
    assert sid.generator_betas == ((0.9, 0.999) if name == "ffhq64" else None)
    assert sid.eps == (1e-6 if precision == "float16" else 1e-8)
    assert sid.ema_halflife == (2_000_000 if name == "imagenet64" else 500_000)
    with torch.device("meta"):
        network = Denoiser(recipe.network)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(parameters, abs=0.05)
    assert recipe.network.label_dim == classes


def test_the_recipe_of_latents_is_the_papers():
    """arXiv 2410.14919, table of hyperparameters: EDM2 at 512x512, sizes xs and s."""
    recipe, sid = read_recipe("imagenet512-xs")
    assert (sid.alpha, sid.batch, sid.lr, sid.precision) == (1.0, 2048, 5e-5, "float16")
    assert (sid.noise_mean, sid.noise_std, sid.augment) == (-0.4, 1.0, 0)
    assert (sid.ema_halflife, sid.t_max, sid.sigma_init) == (2_000_000, 800, 2.5)
    with torch.device("meta"):
        network = Denoiser(recipe.network.for_drawing())
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(124.7, abs=0.05)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_shipped_recipe_can_be_run(file):
    recipe, method = read_recipe(file.stem)
    assert recipe.description
    assert method.batch % method.images_per_call == 0


def test_mistakes_in_a_recipe_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no recipe 'nope'.*cifar10-cond.*fashion"):
        load_recipe("nope")
    with pytest.raises(
        UserError, match=rf"recipe file {tmp_path}/my.toml is missing: .*in {tmp_path};"
    ):
        load_recipe(f"{tmp_path}/my.toml")
    with pytest.raises(UserError, match=r"recipe file fashion.toml is missing: .*fashion, "):
        load_recipe("fashion.toml")
    broken = tmp_path / "mine.toml"
    broken.mkdir()
    with pytest.raises(UserError, match=r"mine.toml is no file"):
        load_recipe(str(broken))
    broken.rmdir()
    text = (RECIPES / "fashion.toml").read_text()
    broken.write_text(text.replace("alpha =", "alfa ="))
    with pytest.raises(UserError, match=r"sid\.alfa"):
        read_recipe(str(broken))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no recipe 'mine' is shipped: for the file say mine.toml"):
        load_recipe("mine")


TINY = """
description = "tiny"
[network]
img_resolution = 16
img_channels = 1
model_channels = 16
channel_mult = [1]
attn_resolutions = []
[sid]
total_images = 16
"""
WITHOUT_NETWORK = "description = 'tiny'\n[sid]\ntotal_images = 16\n"
WITHOUT_METHOD = TINY[: TINY.index("[sid]")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"sid = 'yes'\n{WITHOUT_METHOD}", r"unknown entry sid, and no section \[sid\]: a recipe"),
        (f"{WITHOUT_METHOD}[[sid]]\nlr = 1\n", r"unknown entry sid, and no section \[sid\]"),
        (WITHOUT_METHOD, r"no section of a method"),
        (f"{TINY}[sidx]\nlr = 1\n", r"unknown section \[sidx\]: a recipe may hold .*methods: sid"),
        (f"{TINY}checkpoint_every = 16\n[sidx]\n", r"unknown section \[sidx\]: a recipe may hold"),
        (f"network = [1]\n{WITHOUT_NETWORK}", r"network is a section: write a line \[network\]"),
        (f"[[network]]\n{WITHOUT_NETWORK}", r"network is a section: write a line \[network\]"),
        (f"teacher = 'x'\n{TINY}", r"teacher is a section: write a line \[teacher\]"),
        (f"regression = []\n{TINY}", r"regression is a section: write a line \[regression\]"),
        (f"{TINY}precision = 16\n", r"sid\.precision: Input should be 'float32'"),
        (f"{TINY}precision = ['bf16']\n", r"sid\.precision: Input should be 'float32'"),
        (TINY.replace("[network]", "[network]\narchitecture = 'vit'"), r"network: .*'vit'.*ddpmpp"),
    ],
)
def test_what_is_no_section_or_not_its_entry_is_refused_by_name(text, reason, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"^{file}.* {reason}"):
        read_recipe(str(file))


def test_an_option_out_of_range_is_named():
    _, sid = read_recipe("fashion")
    assert override(sid, batch=32).images_per_call == 32
    with pytest.raises(UserError, match="a batch of 100 is no multiple of the micro-batch of 64"):
        override(sid, batch=100)
    with pytest.raises(UserError, match="precision"):
        override(sid, precision="fp8")


def test_former_words_for_a_precision_are_understood_and_said_to_be_former(tmp_path, capfd):
    mine = tmp_path / "mine.toml"
    text = (RECIPES / "avatars.toml").read_text()
    mine.write_text(text.replace('precision = "bfloat16"', 'precision = "bf16"'))
    recipe, sid = read_recipe(str(mine))
    todays, todays_sid = read_recipe("avatars")
    assert (recipe, sid) == (todays, todays_sid)
    assert override(sid, precision="fp32").precision == "float32"
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "precision bf16 is now called bfloat16: write that",
        "precision fp32 is now called float32: write that",
    ]


@pytest.mark.parametrize("precision", ["tf32", "float16"])
def test_a_precision_that_the_device_lacks_is_refused(precision):
    with pytest.raises(UserError, match=f"--precision {precision} needs a CUDA device"):
        compute_dtype(precision, torch.device("cpu"))
    assert compute_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
