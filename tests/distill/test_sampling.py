"""The samplers on a problem with a known solution."""

import pytest
import torch
from torch import nn

from distill.data.images import to_pixels
from distill.networks.edm import EdmConfig
from distill.sampling import euler, heun, one_step, sample_inputs


class GaussianDenoiser(nn.Module):
    """The optimal denoiser of N(0, s^2) pixels: it shrinks by s^2 / (s^2 + sigma^2)."""

    def __init__(self, s, preconditioning="edm"):
        super().__init__()
        self.s, self.calls = s, 0
        self.config = EdmConfig(
            img_resolution=8, img_channels=1, attn_resolutions=(), preconditioning=preconditioning
        )

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


@pytest.mark.parametrize(("preconditioning", "sigma_max"), [("edm", 80), ("flow", 999)])
def test_euler_solves_the_gaussian_ode(preconditioning, sigma_max):
    """Whichever path it takes, from the noise level at which that begins."""
    latents = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = euler(GaussianDenoiser(0.5, preconditioning), latents, None, steps=4000)
    exact = latents * sigma_max * 0.5 / (0.5**2 + sigma_max**2) ** 0.5
    torch.testing.assert_close(images, exact, rtol=2e-3, atol=0)


@pytest.mark.parametrize("preconditioning", ["edm", "flow"])
def test_euler_is_of_first_order(preconditioning):
    latents = torch.ones(1, 1, 1, 1)
    errors = [
        abs(euler(GaussianDenoiser(0.5, preconditioning), latents, None, n).item() - 0.5)
        for n in (200, 400)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("preconditioning", ["edm", "flow"])
def test_an_euler_step_is_an_evaluation(preconditioning):
    denoiser = GaussianDenoiser(0.5, preconditioning)
    euler(denoiser, torch.ones(1, 1, 1, 1), None, steps=35)
    assert denoiser.calls == 35


def test_a_flow_is_straight_where_the_data_are_one_point():
    """x_t = (1 - t) x0 + t eps for the one x0 there is, so a single Euler step is exact."""

    class Point(GaussianDenoiser):
        def forward(self, x, sigma, _class_labels=None, _augment_labels=None):  # noqa: ARG002
            return torch.full_like(x, 0.25)

    latents = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = euler(Point(0.5, "flow"), latents, None, steps=1)
    torch.testing.assert_close(images, torch.full_like(images, 0.25))


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
