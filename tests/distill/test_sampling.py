"""The samplers on a problem with a known solution."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.data.images import to_pixels
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.sampling import (
    euler,
    few_step,
    fresh_noise,
    heun,
    one_step,
    sample_inputs,
    step_mixture,
)
from distill.schedules import step_sigmas


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


@cache
def awake():
    """A small network of random weights, which is anything but linear."""
    torch.manual_seed(0)
    config = EdmConfig(
        img_resolution=8, img_channels=1, label_dim=3, model_channels=8, channel_mult=(1,),
        num_blocks=1, attn_resolutions=(), dropout=0,
    )  # fmt: skip
    network = Denoiser(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def inputs(count):
    latents = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return latents, F.one_hot(torch.arange(count) % 3, 3).float()


def by_hand(network, latents, labels, steps, calls, renoise="same"):
    """The image after so many `calls`, of a generator of so many `steps`."""
    image = None
    for k in range(calls):
        sigma = torch.tensor([2.5 * (steps - k) / steps])
        noise = latents if renoise == "same" or k == 0 else fresh_noise(latents, k)
        noisy = sigma * noise if image is None else image + sigma * noise
        image = network(noisy, sigma, labels)
    return image


def test_levels_fall_evenly_from_the_first():
    assert step_sigmas(2.5, 1) == [2.5]
    assert step_sigmas(2.5, 4) == [2.5, 1.875, 1.25, 0.625]


@pytest.mark.parametrize("renoise", ["same", "fresh"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@torch.no_grad()
def test_a_few_steps_are_calls_by_hand_with_noise_between(steps, renoise):
    latents, labels = inputs(3)
    images = few_step(awake(), latents, labels, 2.5, steps, renoise)
    assert torch.equal(images, by_hand(awake(), latents, labels, steps, steps, renoise))
    assert torch.equal(images, one_step(awake(), latents, labels, 2.5)) == (steps == 1)


@pytest.mark.parametrize("steps", [2, 4])
def test_re_noising_has_the_variance_that_it_must_have(steps):
    """An optimal denoiser of N(0, s^2) is A x: fresh noise adds variances, the same amplitudes."""
    s = 0.5
    latents = torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    variance = amplitude = 0.0
    for sigma in step_sigmas(2.5, steps):
        shrink = s**2 / (s**2 + sigma**2)
        variance = shrink**2 * (variance + sigma**2)
        amplitude = shrink * (amplitude + sigma)
    denoiser = GaussianDenoiser(s)
    fresh = few_step(denoiser, latents, None, 2.5, steps, "fresh")
    assert denoiser.calls == steps
    assert fresh.var().item() == pytest.approx(variance, rel=0.02)
    same = few_step(denoiser, latents, None, 2.5, steps, "same")
    torch.testing.assert_close(same, amplitude * latents)


def test_fresh_noise_is_each_images_own_whatever_it_is_drawn_with():
    latents = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = fresh_noise(latents, 1)
    in_parts = [fresh_noise(part, 1) for part in latents.flip(0).split(24)]
    assert torch.equal(torch.cat(in_parts).flip(0), noise)
    of_columns = latents.contiguous(memory_format=torch.channels_last)
    assert torch.equal(fresh_noise(of_columns, 1), noise)
    together = torch.stack([latents, noise, fresh_noise(latents, 2)]).flatten(1)
    assert torch.allclose(torch.corrcoef(together), torch.eye(3), atol=0.06)


@pytest.mark.parametrize("steps", [2, 4])
@torch.no_grad()
def test_a_mixture_holds_the_images_after_each_number_of_steps(steps):
    latents, labels = inputs(2 * steps)
    images = step_mixture(awake(), latents, labels, 2.5, steps)
    for i, image in enumerate(images):
        alone = latents[i : i + 1], labels[i : i + 1]
        expected = by_hand(awake(), *alone, steps, i % steps + 1)
        torch.testing.assert_close(image, expected[0], rtol=1e-4, atol=1e-5)


def test_a_mixture_has_the_gradient_of_its_last_steps_alone():
    """And calls the network for those images only that have steps before them."""
    latents, labels = inputs(4)
    sizes = []

    def generator(x, *rest):
        sizes.append((len(x), torch.is_grad_enabled()))
        return awake()(x, *rest)

    parameters = list(awake().parameters())
    mixed = torch.autograd.grad(
        step_mixture(generator, latents, labels, 2.5, 4).square().sum(), parameters
    )
    assert sizes == [(3, False), (2, False), (1, False), (4, True)]
    expected = [torch.zeros_like(p) for p in parameters]
    for i in range(4):
        alone = latents[i : i + 1], labels[i : i + 1]
        sigma = torch.tensor([step_sigmas(2.5, 4)[i]])
        with torch.no_grad():
            before = by_hand(awake(), *alone, 4, i) if i else 0
        image = awake()(before + sigma * alone[0], sigma, alone[1])
        for total, part in zip(
            expected, torch.autograd.grad(image.square().sum(), parameters), strict=True
        ):
            total += part
    for found, gradient in zip(mixed, expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-3)


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
