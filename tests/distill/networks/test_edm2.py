"""EDM2's U-Net against the reference network's numbers, sizes and costs."""

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from distill.importing import load_network
from distill.networks import Denoiser, read_config
from distill.networks.edm2 import Edm2Config
from distill.networks.magnitude import mp_cat, mp_silu, mp_sum, normalise, unit_rows
from tests.reference_numbers import FIXTURES

TINY = {
    "architecture": "edm2", "img_resolution": 8, "img_channels": 2, "label_dim": 3,
    "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,),
    "channels_per_head": 8, "dropout": 0.5,
}  # fmt: skip


def reference(name):
    with np.load(FIXTURES / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


@pytest.fixture(scope="module")
def teacher():
    return load_network(FIXTURES / "edm2.pkl")


@pytest.fixture(scope="module")
def case():
    return reference("edm2")


def test_the_output_equals_the_reference(teacher, case):
    x, sigma = case["x"], case["sigma"]
    with torch.no_grad():
        denoised, log_variance = teacher(x, sigma, case["labels"], uncertainty=True)
        unlabelled = teacher(x, sigma)
    torch.testing.assert_close(denoised, case["denoised"], rtol=0, atol=2e-6)
    torch.testing.assert_close(unlabelled, case["denoised_unlabelled"], rtol=0, atol=2e-6)
    torch.testing.assert_close(log_variance.flatten(), case["logvar"], rtol=0, atol=2e-6)
    assert log_variance.shape == (4, 1, 1, 1)


def test_a_generator_of_sidas_equals_the_reference():
    network, case = load_network(FIXTURES / "sida_edm2.pkl"), reference("sida_edm2")
    with torch.no_grad():
        denoised, nothing = network(case["x"], case["sigma"], case["labels"], uncertainty=True)
        drawn = network(2.5 * case["z"], torch.tensor([2.5]), case["labels"])
        c_in, c_noise = network.preconditioning(case["sigma"])[2:]
        emb = network.model.embed(c_noise, case["labels"], None)
        features = network.model.encode(c_in.reshape(-1, 1, 1, 1) * case["x"], emb)
    assert nothing is None, "a generator is not asked how sure it is"
    torch.testing.assert_close(denoised, case["denoised"], rtol=0, atol=2e-6)
    torch.testing.assert_close(drawn, case["generated"], rtol=0, atol=2e-6)
    logits = features[-1].mean(dim=1, keepdim=True)
    torch.testing.assert_close(logits, case["logits"], rtol=0, atol=2e-6)


def test_forced_normalisation_gives_rows_of_one(teacher, case):
    torch.testing.assert_close(teacher.model.enc["16x16_conv"].weight.data, case["forced_before"])
    torch.testing.assert_close(unit_rows(case["forced_before"]), case["forced_after"])
    held = {id(weight) for weight in teacher.model.unit_weights()}
    free = [name for name, p in teacher.model.named_parameters() if id(p) not in held]
    assert {name.rpartition(".")[2] for name in free} == {"emb_gain", "out_gain"}


def test_the_parts_keep_the_magnitude_of_what_is_random():
    torch.manual_seed(0)
    a, b = torch.randn(2, 64, 32, 32), torch.randn(2, 16, 32, 32)
    for part in (mp_silu(a), mp_cat(a, b, 0.3)):
        assert part.square().mean().sqrt() == pytest.approx(1, abs=0.02)
    assert mp_sum(a, torch.randn_like(a), 0.3).std() == pytest.approx(1, abs=0.02)
    half = normalise((100 * a).half(), dim=[1])
    assert half.dtype is torch.float16
    assert half.float().square().mean(dim=1).sqrt() == pytest.approx(
        torch.ones(2, 32, 32), abs=0.01
    )


@pytest.mark.parametrize(
    ("width", "million_parameters", "gigamacs"), [(64, 31.3, 11.3), (128, 124.7, 45.0)]
)
def test_the_released_sizes_have_their_parameters_and_cost(width, million_parameters, gigamacs):
    config = Edm2Config(
        img_resolution=64, img_channels=4, label_dim=1000, model_channels=width, logvar_channels=0
    )
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = Denoiser(config).eval()
        network(torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 1000))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(million_parameters, abs=0.05)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gigamacs, abs=0.05)


def random_network(**changes):
    """A tiny one whose gains are not 0, as they are of a fresh one."""
    torch.manual_seed(0)
    network = Denoiser(read_config(TINY | changes))
    for name, parameter in network.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(0.7)
    return network.eval()


def test_a_fresh_network_denoises_to_little_and_learns():
    network = Denoiser(read_config(TINY))
    x, sigma = torch.randn(4, 2, 8, 8), torch.full((4,), 0.5)
    denoised = network(x, sigma, torch.eye(3)[[0, 1, 2, 0]])
    torch.testing.assert_close(denoised, 0.5 * x)
    denoised.square().sum().backward()
    assert network.model.out_gain.grad.abs() > 0


@pytest.mark.parametrize("label_dim", [0, 3, 30])
def test_folded_it_draws_the_same_with_nothing_left_to_normalise(label_dim):
    network = random_network(label_dim=label_dim).model
    labels = torch.tensor([0, 2]) if label_dim else torch.tensor([0])
    classes = torch.eye(label_dim) if label_dim else None
    x, c_noise = torch.randn(2, 2, 8, 8), torch.tensor([0.3])
    with torch.no_grad():
        expected = network(x, c_noise.repeat(2), classes[labels] if label_dim else None)
        folded = copy.deepcopy(network)
        table = folded.fold(folded.embed(c_noise, classes, None))
        drawn = folded.draw(x, table(labels))
    torch.testing.assert_close(drawn, expected, rtol=0, atol=2e-5)


def test_without_its_head_a_network_draws_the_same():
    network = random_network()
    bare = copy.deepcopy(network)
    bare.strip()
    assert bare.config == network.config.model_copy(update={"logvar_channels": 0})
    assert Denoiser(bare.config).state_dict().keys() == bare.state_dict().keys()
    gone = network.state_dict().keys() - bare.state_dict().keys()
    assert {name.split(".")[1] for name in gone} == {"logvar_fourier", "logvar_linear"}
    x, sigma = torch.randn(1, 2, 8, 8), torch.tensor([1.0])
    assert torch.equal(bare(x, sigma), network(x, sigma))


def test_in_half_precision_it_is_near_and_its_uncertainty_is_exact():
    network = random_network()
    x, sigma, labels = torch.randn(3, 2, 8, 8), torch.tensor([0.1, 1.0, 10.0]), torch.eye(3)
    expected, exact = network(x, sigma, labels, uncertainty=True)
    network.compute_dtype = torch.bfloat16
    denoised, log_variance = network(x, sigma, labels, uncertainty=True)
    torch.testing.assert_close(denoised, expected, rtol=0, atol=0.1)
    assert not torch.equal(denoised, expected)
    assert torch.equal(log_variance, exact)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"img_resolution": 7}, "cannot be halved 1 times: choose one divisible by 2"),
        ({"attn_resolutions": (16,)}, r"\[16\] are no level of this network: it has \[8, 4\]"),
        ({"channel_mult": (1, 0)}, "must hold factors of 1 to 64"),
        ({"channels_per_head": 5}, "16 channels cannot be split among 3 attention heads"),
        ({"model_channels": 10**20}, "model_channels"),
        ({"augment_dim": 9}, "augment_dim"),
        ({"patch_size": 2}, "patch_size"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        read_config(TINY | changes)
