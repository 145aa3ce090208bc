"""The noise level at which a generator starts follows the variety of its teacher."""

import math

import pytest
import torch
from torch import nn

from distill.checkpoints import load_network
from distill.errors import UserError
from distill.networks.edm import EdmConfig
from distill.training.start_level import fitting_sigma_init, mean_colour_spread
from tests.distill.command_line import sid_distill
from tests.distill.data.test_data import write_images
from tests.distill.test_cli import RECIPE

SIDE = 16


class FlatColours(nn.Module):
    """The optimal denoiser of images of one colour, each channel N(centre of its class, s^2)."""

    def __init__(self, spread, classes):
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(spread))
        self.config = EdmConfig(
            img_resolution=SIDE, img_channels=3, label_dim=classes, attn_resolutions=(),
            channel_mult=(1,),
        )  # fmt: skip

    def forward(self, x, sigma, class_labels=None):
        """Of an image's mean, which the noise blurs by sigma / SIDE."""
        centre = torch.zeros(len(x), 1, 1, 1)
        if class_labels is not None:
            centre = (class_labels.argmax(dim=1) % 2 - 0.5).reshape(-1, 1, 1, 1)
        variance, noise = self.spread**2, (sigma.reshape(-1, 1, 1, 1) / SIDE) ** 2
        mean = x.mean(dim=(2, 3), keepdim=True)
        return (centre + (mean - centre) * variance / (variance + noise)).expand_as(x)


def test_the_spread_is_that_within_the_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4000) % 4
    colours = labels.float()[:, None] / 2 - 0.75  # far from each other, which must not count
    colours = colours + 0.1 * torch.randn(4000, 3, generator=generator)
    noise = 0.5 * torch.randn(4000, 3, 8, 8, generator=generator)
    images = colours[:, :, None, None] + noise - noise.mean(dim=(2, 3), keepdim=True)
    assert mean_colour_spread(images, labels) == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize("classes", [0, 2, 40])
@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_the_level_is_the_teachers_spread_times_the_side(classes, spread):
    level, measured = fitting_sigma_init(FlatColours(spread, classes).eval())
    assert measured == pytest.approx(spread, rel=0.4)
    assert level == pytest.approx(measured * SIDE, rel=0.05)


def test_a_teacher_whose_images_are_not_finite_is_refused():
    with pytest.raises(UserError, match="not finite"):
        fitting_sigma_init(FlatColours(math.nan, 2).eval())


@pytest.mark.slow
@pytest.mark.usefixtures("memory_stays_as_it_is")
def test_run_shows_the_level_and_a_resumed_run_keeps_it(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("640", "96"))
    images = tmp_path / "images"
    write_images(images)
    recipe = ["--recipe", tmp_path / "tiny.toml"]
    sid_distill("teacher", *recipe, "--data", images, "--out", tmp_path / "teacher")
    command = ["run", *recipe, "--teacher", tmp_path / "teacher" / "network.safetensors"]
    command += ["--features", "none", "--out", tmp_path / "sid"]
    first = sid_distill(*command, "--images", 64)
    assert "sigma_init" in first
    assert "sigma_init" not in sid_distill(*command), "it is chosen once"
    # Nor does a run forget the level that it was told when it began.
    command += ["--out", tmp_path / "told"]
    sid_distill(*command, "--images", 64, "--sigma-init", 1.5)
    (tmp_path / "told" / "run.json").write_text("{cut short")
    assert "sigma_init" not in sid_distill(*command)
    _, metadata = load_network(tmp_path / "told" / "network.safetensors")
    assert (metadata["images_seen"], metadata["sigma_init"]) == (96, 1.5)
