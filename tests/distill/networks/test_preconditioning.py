"""The rectified flow and EDM's preconditioning behind one denoiser."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from distill.methods.losses import fake_score_loss
from distill.networks import Denoiser, RawNetwork
from distill.networks.edm import EdmConfig
from distill.networks.preconditioning import TIME_SCALE, coefficients, denoising_weight
from tests.reference_numbers import FIXTURES

TINY = {
    "img_resolution": 8, "img_channels": 1, "model_channels": 8, "channel_mult": (1,),
    "num_blocks": 1, "attn_resolutions": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def reference():
    """Denoisers of Gaussian data and of a linear field, float64, at K = 9 noise levels."""
    with np.load(FIXTURES / "flow.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file if name != "doc"}


class Velocity(RawNetwork):
    """Stands for a network: its velocity is a function of the image [N, 8] and of t [N, 1]."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity = velocity

    def forward(self, x, c_noise, class_labels=None, augment_labels=None):  # noqa: ARG002
        assert x.dtype == torch.float64
        return self.velocity(x.flatten(1), c_noise[:, None] / TIME_SCALE).reshape(x.shape)

    def embed(self, c_noise, class_labels, augment_labels):
        raise NotImplementedError

    def encode(self, x, emb):
        raise NotImplementedError

    def decode(self, features, emb):
        raise NotImplementedError

    def blocks(self):
        return ()


def denoise(reference, velocity):
    """What a flow denoiser of this velocity gives for the fixture's images [9, 5, 8]."""
    network = Denoiser(EdmConfig(preconditioning="flow", **TINY))
    network.model = Velocity(velocity)
    y = reference["y"].reshape(-1, 2, 2, 2)
    sigma = reference["sigma"].repeat_interleave(reference["y"].shape[1])
    return network(y, sigma).reshape(reference["y"].shape)


def test_a_perfect_velocity_is_a_perfect_denoiser(reference):
    def velocity(x, t):
        torch.testing.assert_close(x, reference["rf_x"].flatten(0, 1), rtol=1e-12, atol=1e-12)
        times = reference["rf_t"].repeat_interleave(5)[:, None]
        torch.testing.assert_close(t, times, rtol=1e-12, atol=0)
        return reference["rf_net"].flatten(0, 1)

    denoised = denoise(reference, velocity)
    torch.testing.assert_close(denoised, reference["D"], rtol=0, atol=1e-10)


def test_any_linear_velocity_equals_the_reference(reference):
    denoised = denoise(reference, lambda x, t: x @ reference["lin_M"].T + t * reference["lin_b"])
    torch.testing.assert_close(denoised, reference["lin_D"], rtol=0, atol=1e-10)


# What denoises on each path, x_t = A x0 + S eps, given what its network answers (facts).
PATHS = {
    "rf": lambda x, net, _a, s: x - s * net,
    "rf_data": lambda x, net, _a, s: x + s * net,
    "rf_rev": lambda x, net, _a, s: x + s * net,
    "vp_eps": lambda x, net, a, s: (x - s * net) / a,
    "vp_v": lambda x, net, a, s: a * x - s * net,
    "trig": lambda x, net, a, s: a * x - s * net,
}


@pytest.mark.parametrize("path", PATHS)
def test_every_gaussian_path_is_this_one_rescaled(reference, path):
    """x_t / A is the image at sigma = S / A, so one denoiser interface serves them all."""
    a, s = (reference[f"{path}_{name}"][:, None, None] for name in "AS")
    x, net = reference[f"{path}_x"], reference[f"{path}_net"]
    torch.testing.assert_close(x / a, reference["y"], rtol=1e-10, atol=0)
    torch.testing.assert_close((s / a).flatten(), reference["sigma"], rtol=1e-10, atol=0)
    denoised = PATHS[path](x, net, a, s)
    torch.testing.assert_close(denoised, reference["D"], rtol=0, atol=1e-10)


def test_the_flow_loss_is_the_error_of_the_velocity():
    torch.manual_seed(0)
    x0, eps, v = torch.randn(3, 6, 1, 2, 2, dtype=torch.float64)
    sigma = torch.tensor([1e-3, 0.1, 0.7, 1, 20, 999], dtype=torch.float64).reshape(-1, 1, 1, 1)
    c_skip, c_out, _, _ = coefficients("flow", sigma)
    denoised = c_skip * (x0 + sigma * eps) + c_out * v
    loss = fake_score_loss(x0, denoised, sigma, "flow")
    torch.testing.assert_close(loss, (v - (eps - x0)) ** 2, rtol=1e-8, atol=1e-8)


def test_edms_weight_is_the_papers_to_the_bit():
    sigma = torch.logspace(-3, 3, 1000)
    expected = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2
    assert torch.equal(denoising_weight("edm", sigma), expected)


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_the_weight_evens_out_the_networks_own_error(kind):
    sigma = torch.logspace(-3, 3, 20, dtype=torch.float64)
    _, c_out, _, _ = coefficients(kind, sigma)
    torch.testing.assert_close(denoising_weight(kind, sigma), 1 / c_out**2)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_no_noise_level_overflows(kind, dtype):
    torch.manual_seed(0)
    network = Denoiser(EdmConfig(preconditioning=kind, **TINY))
    network.compute_dtype = dtype
    sigma = torch.logspace(-3, np.log10(999), 32).reshape(-1, 1, 1, 1)
    images = torch.rand(32, 1, 8, 8) * 2 - 1
    denoised = network(images + sigma * torch.randn_like(images), sigma)
    loss = fake_score_loss(images, denoised, sigma, kind)
    loss.mean().backward()
    assert loss.isfinite().all()
    # The network learns from every level alike: its loss is that of an answer near 0 everywhere.
    assert loss.mean(dim=(1, 2, 3)).max() < 10
    assert all(
        weight.grad.isfinite().all() for weight in network.parameters() if weight.grad is not None
    )


def test_a_record_of_an_edm_network_is_what_it_always_was():
    record = EdmConfig(**TINY).model_dump_json()
    assert "preconditioning" not in record
    assert EdmConfig.model_validate_json(record).preconditioning == "edm"
    assert EdmConfig(preconditioning="edm", **TINY).model_dump_json() == record


def test_a_record_of_a_flow_network_says_so():
    config = EdmConfig(preconditioning="flow", **TINY)
    assert EdmConfig.model_validate_json(config.model_dump_json()) == config
    assert config.model_dump()["preconditioning"] == "flow"


def test_an_unknown_preconditioning_is_refused():
    with pytest.raises(ValidationError, match="'edm' or 'flow'"):
        EdmConfig(preconditioning="vp", **TINY)
