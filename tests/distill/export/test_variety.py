"""A generator that draws the same whatever it is asked for is not published."""

import math

import pytest
import torch

from distill.checkpoints import save_network
from distill.errors import UserError
from distill.export.one_step import PixelGenerator
from distill.export.publish import publish
from distill.export.variety import check_variety
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig

CLASSES = ["a", "b", "c"]


class Drawn(torch.nn.Module):
    """Stands where a generator does: images by a formula of noise and class."""

    def __init__(self, formula, classes):
        super().__init__()
        self.config = EdmConfig(
            img_resolution=8, img_channels=3, label_dim=len(classes), model_channels=8,
            channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.0,
        )  # fmt: skip
        self.formula = formula

    def forward(self, x, _sigma, labels, _augmentation):
        number = 0 if labels is None else labels.argmax(dim=1).view(-1, 1, 1, 1)
        return self.formula(x / 5, number) + 0 * x


def check(formula, classes=CLASSES):
    check_variety(PixelGenerator(Drawn(formula, classes), 2.5), classes)


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        (lambda _z, _c: -1.0, "the same image of class 'a' for every seed"),
        (lambda _z, _c: math.nan, "the same image of class 'a' for every seed"),
        (lambda _z, c: c / 3, "the same image of class 'a' for every seed"),
        (lambda z, c: torch.where(torch.as_tensor(c == 1), -1.0, z), "of class 'b' for every seed"),
        (lambda z, c: (c + 0.3) / 4 + z / 5000, "the same image of class 'a' for every seed"),
        (lambda z, _c: z, "the same image for all of its 3 classes"),
        (lambda z, c: z + c * 1e-7, "the same image for all of its 3 classes"),
        (lambda z, c: z.sign() * (2 + c), "the same image for all of its 3 classes"),
    ],
)
def test_images_that_do_not_depend_on_what_is_asked_are_refused(formula, said):
    with pytest.raises(UserError, match=said):
        check(formula)


def test_without_classes_the_seed_alone_counts():
    check(lambda z, _c: z, classes=[])
    with pytest.raises(UserError, match="the same image for every seed"):
        check(lambda _z, _c: 0.5, classes=[])


def test_images_that_depend_on_both_are_not():
    check(lambda z, c: z + c / 3)
    check(lambda z, c: z + torch.as_tensor(c == 2))  # two classes may look alike
    check(lambda z, c: z + c / 10_000)  # less than a level, as after a short training
    check(lambda z, _c: z, classes=["only"])
    check(lambda z, c: z + c / 300, classes=[str(number) for number in range(300)])


def test_publish_looks(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.export.publish._export_all", lambda *_: None)
    network = Denoiser(Drawn(None, CLASSES).config)
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(-1e6)
    metadata = {"role": "generator", "classes": CLASSES, "sigma_init": 2.5}
    save_network(tmp_path / "g.safetensors", network, metadata)
    with pytest.raises(UserError, match=r"of class 'a' for every seed: its training"):
        publish(tmp_path / "g.safetensors", None, "x", "", "MIT", tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())
