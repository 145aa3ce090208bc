"""The U-Nets against the reference networks' numbers, sizes and costs."""

import copy
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from distill.importing import load_network
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.networks.layers import BINOMIAL, Conv2d, self_attention, zeros
from tests.reference_numbers import FIXTURES

ARCHITECTURES = ["ddpmpp", "ncsnpp", "adm"]
TINY = {
    "img_resolution": 8, "img_channels": 2, "label_dim": 3, "augment_dim": 9, "model_channels": 64,
    "channel_mult": (1, 2, 2), "num_blocks": 1, "attn_resolutions": (4,), "dropout": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def released():
    """The networks of the fixtures, by architecture."""
    return {name: load_network(FIXTURES / f"{name}.pkl") for name in ARCHITECTURES}


def reference(name):
    with np.load(FIXTURES / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("augmented", [False, True])
def test_the_output_equals_the_reference(released, name, augmented):
    case = reference(name)
    augment_labels = case["augment_labels"] if augmented else None
    expected = case["denoised_augmented" if augmented else "denoised"]
    with torch.no_grad():
        denoised = released[name](case["x"], case["sigma"], case["labels"], augment_labels)
    torch.testing.assert_close(denoised, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "augmented"),
    [*((name, False) for name in ARCHITECTURES), ("ddpmpp", True), ("ncsnpp", True)],
)
def test_the_discriminator_equals_the_reference(name, augmented):
    """It is the encoder: alone, or in one pass with the denoiser, which stays what it was."""
    case, ending = reference(f"sida_{name}"), "_augmented" if augmented else ""
    network = load_network(FIXTURES / f"sida_{name}.pkl")
    inputs = [case["x"], case["sigma"], case["labels"]]
    if augmented:
        inputs.append(case["augment_labels"])
    with torch.no_grad():
        denoised, logits = network(*inputs, parts="both")
        assert torch.equal(denoised, network(*inputs))
        assert torch.equal(logits, network(*inputs, parts="logits"))
    torch.testing.assert_close(logits, case[f"logits{ending}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(denoised, case[f"denoised{ending}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("parts", ["both", "logits"])
def test_logits_are_float32_whatever_the_network_computes_in(released, parts):
    case, half = reference("ddpmpp"), copy.deepcopy(released["ddpmpp"])
    half.compute_dtype = torch.bfloat16
    made = half(case["x"], case["sigma"], case["labels"], parts=parts)
    assert all(part.dtype is torch.float32 for part in (made if parts == "both" else [made]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_noise_level_serves_the_whole_batch(released, name):
    case = reference(name)
    x, labels = case["x"][:3], case["labels"][:3]
    with torch.no_grad():
        broadcast = released[name](x, torch.tensor([2.5]), labels)
        repeated = released[name](x, torch.full((3,), 2.5), labels)
    torch.testing.assert_close(broadcast, repeated)


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_no_labels_are_labels_of_zero(released, name):
    case = reference(name)
    with torch.no_grad():
        none = released[name](case["x"], case["sigma"])
        zero = released[name](case["x"], case["sigma"], torch.zeros_like(case["labels"]))
    assert torch.equal(none, zero)


CIFAR = {"img_resolution": 32, "img_channels": 3, "label_dim": 10, "augment_dim": 9}
FFHQ = {"img_resolution": 64, "img_channels": 3, "augment_dim": 9, "channel_mult": (1, 2, 2, 2)}
IMAGENET = {
    "architecture": "adm", "img_resolution": 64, "img_channels": 3, "label_dim": 1000,
    "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "million_parameters", "gflop"),
    [(CIFAR, 55.7, 42.4), (FFHQ, 61.8, 83.7), (IMAGENET, 295.9, 219.3)],
    ids=["cifar", "ffhq", "imagenet"],
)
def test_the_released_sizes_have_their_parameters_and_cost(config, million_parameters, gflop):
    config = EdmConfig(**config)
    size = config.img_resolution
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = Denoiser(config).eval()
        network(torch.empty(1, 3, size, size), torch.empty(1))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(million_parameters, abs=0.05)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, abs=0.05)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_network_denoises_to_little_and_learns(architecture):
    """Its last layer starts (near) zero, so D is c_skip x; gradients reach it all the same."""
    torch.manual_seed(0)
    network = Denoiser(EdmConfig(architecture=architecture, **TINY))
    x, sigma = torch.randn(4, 2, 8, 8), torch.full((4,), 0.5)
    labels, augment = torch.eye(3)[[0, 1, 2, 0]], torch.randn(4, 9)
    denoised = network(x, sigma, labels, augment)
    torch.testing.assert_close(denoised, 0.5 * x, rtol=0, atol=1e-3)
    denoised.square().sum().backward()
    assert network.model.state_dict().keys() >= {"map_label.weight", "map_augment.weight"}
    last = list(network.parameters())[-2]
    assert last.grad is not None
    assert last.grad.abs().sum() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_is_near_and_keeps_gradients(released, architecture):
    case = reference(architecture)
    network = released[architecture]
    half = copy.deepcopy(network)
    half.compute_dtype = torch.bfloat16
    half = copy.deepcopy(half)  # an average or a second network keeps the precision
    assert half.compute_dtype is torch.bfloat16
    assert half.state_dict().keys() == network.state_dict().keys()
    denoised = half(case["x"], case["sigma"], case["labels"])
    assert denoised.dtype is torch.float32
    torch.testing.assert_close(denoised, case["denoised"], rtol=0, atol=0.3)
    assert not torch.equal(denoised, case["denoised"])
    denoised.square().mean().backward()
    assert all(parameter.dtype is torch.float32 for parameter in half.parameters())
    missing = [name for name, p in half.named_parameters() if p.grad is None]
    assert missing in ([], ["model.map_augment.weight"])


def test_the_attention_of_half_precision_takes_its_softmax_in_float32():
    """Of logits in the thousands, which float16 tells apart only by whole numbers."""
    torch.manual_seed(0)
    qkv = torch.randn(1, 3 * 16, 4, 4)
    qkv[:, 0::3] *= 100
    qkv[:, 1::3] = 20 + 0.01 * qkv[:, 1::3]
    half = qkv.to(torch.float16)
    expected = self_attention(half.float(), heads=1)
    torch.testing.assert_close(self_attention(half, heads=1).float(), expected, rtol=0, atol=2e-3)


def test_the_filters_are_in_no_state_dict(released):
    for network in released.values():
        assert not [name for name in network.state_dict() if "resample_filter" in name]
    assert "model.map_noise.freqs" in released["ncsnpp"].state_dict()


@pytest.mark.parametrize(("up", "down"), [(True, False), (False, True)])
def test_the_smooth_filter_resamples_as_its_matrix_does(up, down):
    conv = Conv2d(2, 2, kernel=0, init=zeros, up=up, down=down, resample=BINOMIAL)
    x = torch.randn(1, 2, 6, 6)
    if down:
        rows = torch.zeros(3, 8)
        for i in range(3):
            rows[i, 2 * i : 2 * i + 4] = torch.tensor([1, 3, 3, 1]) / 8
        expected = rows @ F.pad(x, (1, 1, 1, 1)) @ rows.T
    else:
        rows = torch.zeros(14, 6)
        for i in range(6):
            rows[2 * i : 2 * i + 4, i] = torch.tensor([1, 3, 3, 1]) / 4
        rows = rows[1:13]
        expected = rows @ x @ rows.T
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"img_resolution": 30}, "divisible by 4"),
        ({"patch_size": 3}, "cannot be cut into patches of 3x3"),
        ({"patch_size": 16, "attn_resolutions": ()}, "in patches of 16 cannot be halved 2 times"),
        ({"patch_size": 0}, "patch_size"),
        ({"patch_size": 2, "attn_resolutions": (32,)}, r"\[32\] are no level.*\[16, 8, 4\]"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, 0, 2)}, r"channel_mult \[1, 0, 2\] must hold factors from 1 on"),
        (
            {"model_channels": 9},
            r"cannot be built \(9 channels .*: model_channels 8 or 12 would do",
        ),
        ({"model_channels": 10**20}, "cannot be built"),
        (
            {"attn_resolutions": (16, 7)},
            r"\[7\] are no level of this network: it has \[32, 16, 8\]",
        ),
        ({"dropout": 2}, "dropout"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"colours": 3}, "colours"),
        ({"architecture": "dit"}, "'ddpmpp', 'ncsnpp' or 'adm'"),
        (
            {"architecture": "adm", "channel_mult": (1, 2, 14)},
            r"\(224 channels cannot be split among 3 attention heads\): model_channels 8 or 32 ",
        ),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(changes, said):
    shape = {"img_resolution": 32, "img_channels": 1, "model_channels": 16} | changes
    with pytest.raises(ValidationError, match=said):
        EdmConfig(**shape)


@pytest.mark.parametrize("width", [48, 56, 80, 112])
def test_the_tutorials_recipe_at_a_width_that_does_not_work_names_those_that_do(width):
    shape = {"img_resolution": 32, "img_channels": 3, "channel_mult": (1, 2, 2)}
    shape |= {"num_blocks": 1, "attn_resolutions": (8,)}
    with pytest.raises(ValidationError, match="model_channels") as refused:
        EdmConfig(model_channels=width, **shape)
    below, above = re.search(r"model_channels (\d+) or (\d+) would do", str(refused.value)).groups()
    assert int(below) < width < int(above)
    for works in (int(below), int(above)):
        EdmConfig(model_channels=works, **shape)


@settings(max_examples=30, deadline=None)
@given(
    architecture=st.sampled_from(["ddpmpp", "ncsnpp", "adm"]),
    width=st.integers(4, 160),
    mult=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    num_blocks=st.integers(1, 3),
    attending=st.booleans(),
    classes=st.sampled_from([0, 3]),
)
def test_what_is_admitted_can_be_built_and_run_and_nothing_else_can(
    architecture, width, mult, num_blocks, attending, classes
):
    shape = {
        "architecture": architecture,
        "img_resolution": 8,
        "img_channels": 1,
        "model_channels": width,
        "channel_mult": tuple(mult),
        "num_blocks": num_blocks,
        "attn_resolutions": (8,) if attending else (),
        "label_dim": classes,
    }
    try:
        config = EdmConfig(**shape)
    except ValidationError:
        with pytest.raises((ValueError, RuntimeError)):
            Denoiser(EdmConfig.model_construct(**shape))
        return
    with torch.no_grad():
        drawn = Denoiser(config).eval()(torch.zeros(1, 1, 8, 8), torch.ones(1))
    assert drawn.shape == (1, 1, 8, 8)


@pytest.mark.slow
def test_trying_a_network_draws_no_random_number_and_loads_no_compiler():
    code = (
        "import sys, torch; from distill.recipe import load_recipe; torch.manual_seed(1);"
        "load_recipe('imagenet64'); load_recipe('ffhq64');"
        "print(torch.rand(1).item(), 'torch._dynamo' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch.manual_seed(1)
    assert said.stdout.split() == [str(torch.rand(1).item()), "False"]


def test_a_configuration_written_before_there_were_architectures_is_ddpmpp():
    assert EdmConfig.model_validate_json('{"img_resolution": 32, "img_channels": 1}') == (
        EdmConfig(architecture="ddpmpp", img_resolution=32, img_channels=1)
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_encoder_ends_in_the_lowest_level_and_the_decoder_goes_on_from_there(
    architecture, patch_size
):
    """So one pass gives a discriminator its features and the denoiser its image."""
    size = {"architecture": architecture, "img_resolution": 8 * patch_size}
    torch.manual_seed(0)
    network = EdmConfig(**TINY | size, patch_size=patch_size).build().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # the last layer starts (near) zero
            parameter.add_(0.1 * torch.randn_like(parameter))
        x = torch.randn(2, 2, 8 * patch_size, 8 * patch_size)
        inputs = (torch.tensor([0.3, -1.0]), torch.eye(3)[:2], torch.randn(2, 9))
        emb = network.embed(*inputs)
        features = network.encode(x, emb)
        assert features[-1].shape == (2, 128, 2, 2)
        assert torch.equal(network.decode(features, emb), network(x, *inputs))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_patches_are_channels_of_the_same_network_at_a_smaller_size(architecture):
    """Same weights, same names, same numbers: only the pixels lie elsewhere."""
    shape = TINY | {"architecture": architecture, "dropout": 0.0}
    whole = EdmConfig(**shape | {"img_resolution": 16, "patch_size": 2})
    small = EdmConfig(**shape | {"img_channels": whole.patch_channels})
    assert whole.patch_channels == 8
    torch.manual_seed(0)
    patched, plain = Denoiser(whole).eval(), Denoiser(small).eval()
    plain.load_state_dict(patched.state_dict())
    x, sigma = torch.randn(2, 2, 16, 16), torch.tensor([0.3, 4.0])
    labels = torch.eye(3)[:2]
    # Channel c p^2 + p dy + dx of a patch is its pixel (dy, dx) of channel c.
    patches = x.reshape(2, 2, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 8, 8, 8)
    with torch.no_grad():
        expected = plain(patches, sigma, labels)
        found = patched(x, sigma, labels)
    expected = expected.reshape(2, 2, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(2, 2, 16, 16)
    assert torch.equal(found, expected)


def test_a_network_without_patches_is_recorded_as_before_there_were_any():
    """A training's record is compared when it is resumed, also after an upgrade."""
    config = EdmConfig(img_resolution=32, img_channels=1)
    assert "patch_size" not in config.model_dump()
    patched = EdmConfig(img_resolution=64, img_channels=3, patch_size=2)
    assert EdmConfig.model_validate_json(patched.model_dump_json()) == patched
