"""The samplers on a problem with a known solution."""

import pytest
import torch
from torch import nn

from distill.data.images import to_pixels
from distill.networks.edm import EdmConfig
from distill.sampling import heun, one_step, sample_inputs


class GaussianDenoiser(nn.Module):
    """The optimal denoiser of N(0, s^2) pixels: it shrinks by s^2 / (s^2 + sigma^2)."""

    def __init__(self, s):
        super().__init__()
        self.s, self.calls = s, 0

    def forward(self, x, sigma, _class_labels=None, _augment_labels=None):
        self.calls += 1
        return x * self.s**2 / (self.s**2 + sigma.reshape(-1, 1, 1, 1) ** 2)


def test_heun_solves_the_gaussian_ode():
    """dx/dsigma = x sigma / (s^2 + sigma^2) scales x by s / sqrt(s^2 + 80^2)."""
    latents = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = heun(GaussianDenoiser(s=0.5), latents, None, steps=200)
    exact = latents * 80 * 0.5 / (0.5**2 + 80**2) ** 0.5
    torch.testing.assert_close(images, exact, rtol=1e-3, atol=0)


def test_18_steps_are_35_evaluations():
    denoiser = GaussianDenoiser(s=0.5)
    heun(denoiser, torch.ones(1, 1, 1, 1), None, steps=18)
    assert denoiser.calls == 35


def test_heun_is_of_second_order():
    latents = torch.ones(1, 1, 1, 1)
    exact = 80 * 0.5 / (0.5**2 + 80**2) ** 0.5
    errors = [abs(heun(GaussianDenoiser(0.5), latents, None, n).item() - exact) for n in (20, 40)]
    assert errors[0] / errors[1] > 3.5


def test_the_generator_denoises_scaled_latents_once():
    denoiser = GaussianDenoiser(s=0.5)
    latents = torch.ones(1, 1, 2, 2)
    images = one_step(denoiser, latents, None, sigma_init=2.5)
    assert denoiser.calls == 1
    assert images.max().item() == pytest.approx(2.5 * 0.25 / (0.25 + 6.25))


def test_pixels_are_truncated_not_rounded_and_channels_come_last():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.0039, 0.999, 2.0]).reshape(1, 1, 2, 3)
    pixels = to_pixels(values)
    assert pixels.shape == (1, 2, 3, 1)
    assert pixels.flatten().tolist() == [0, 0, 128, 128, 255, 255]


def test_a_sheet_has_a_row_for_each_class():
    latents, labels = sample_inputs(
        EdmConfig(img_resolution=8, img_channels=1, label_dim=3, attn_resolutions=()),
        torch.device("cpu"),
    )
    assert latents.shape == (30, 1, 8, 8)
    assert labels is not None
    assert labels.argmax(dim=1).tolist() == [0] * 10 + [1] * 10 + [2] * 10
