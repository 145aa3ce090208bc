"""What a method of distillation is given: classes drawn as often as was said."""

import pytest
import torch

from distill.methods.sid import SidConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.distillation import _cumulated_frequencies
from distill.training.method import HalfStep

DRAWS = 40_000


def half_step(classes, frequencies, images=8):
    network = EdmConfig(
        img_resolution=4, img_channels=1, label_dim=classes, model_channels=4, channel_mult=(1,),
        num_blocks=1, attn_resolutions=(),
    )  # fmt: skip
    config = SidConfig(
        total_images=images, batch=images, microbatch=images, checkpoint_every=images,
        class_frequencies=frequencies,
    )  # fmt: skip
    network, device = Denoiser(network), torch.device("cpu")
    table = _cumulated_frequencies(config, classes, device)
    return HalfStep(network, network, network, config, device, table)


@pytest.mark.parametrize(
    "frequencies", [None, (1.0, 1.0, 1.0, 1.0), (3.0, 0.0, 1.0, 0.0), (0.0, 0.1, 0.7, 0.1)]
)
def test_classes_come_as_often_as_was_said(frequencies):
    half = half_step(4, frequencies, DRAWS)
    torch.manual_seed(0)
    _, labels = half.draw_inputs()
    assert torch.equal(labels.sum(dim=1), torch.ones(DRAWS)), "each image has one class"
    expected = torch.tensor(frequencies or (1.0,) * 4)
    expected = expected / expected.sum()
    deviation = (expected * (1 - expected) / DRAWS).sqrt()
    assert ((labels.mean(dim=0) - expected).abs() <= 4 * deviation).all(), "0 means never, too"


def test_no_draw_lies_beyond_the_last_class():
    """Neither 0 nor the largest number below 1 is of a class that is never drawn."""
    table = half_step(11, (0.0, *(0.1,) * 9, 0.0)).cumulated_frequencies
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert torch.searchsorted(table, ends, right=True).tolist() == [1, 9]
