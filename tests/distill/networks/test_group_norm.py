"""Group normalisation that keeps channels_last, against torch's."""

import pytest
import torch
from torch.nn import functional as F

from distill.networks.layers import GroupNorm, group_norm_half, group_norm_nhwc

CHANNELS_LAST = torch.channels_last


def case(dtype=torch.float32, mean=0.0, shape=(3, 24, 6, 4)):
    """A map in channels_last, with the layer's weight and bias."""
    torch.manual_seed(0)
    x = (torch.randn(shape) * 2 + mean).to(dtype).contiguous(memory_format=CHANNELS_LAST)
    return x, torch.randn(shape[1]), torch.randn(shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 24, 6, 4), (1, 8, 1, 1), (2, 4, 5, 5)])
def test_maps_and_gradients_stay_in_channels_last_and_in_their_type(dtype, shape):
    x, weight, bias = case(dtype, shape=shape)
    x.requires_grad_(True)
    normed = group_norm_nhwc(x, 2, weight, bias, 1e-5)
    normed.float().square().sum().backward()
    for tensor in (normed, x.grad):
        assert tensor.is_contiguous(memory_format=CHANNELS_LAST)
        assert tensor.dtype == dtype
        assert tensor.shape == shape


@pytest.mark.parametrize("mean", [0, 1, 10])
@pytest.mark.parametrize("groups", [1, 6, 24])
def test_float32_is_nearer_to_the_exact_value_than_a_millionth(mean, groups):
    x, weight, bias = case(mean=mean)
    exact = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
    error = (group_norm_nhwc(x, groups, weight, bias, 1e-5) - exact).abs().max()
    assert error <= 1e-6 * exact.abs().max()


def test_float32_gradients_are_torchs():
    x, weight, bias = case()
    grad = torch.randn_like(x)
    gradients = []
    for norm in (F.group_norm, group_norm_nhwc):
        leaves = [t.clone().requires_grad_(True) for t in (x, weight, bias)]
        norm(leaves[0], 6, leaves[1], leaves[2], 1e-5).backward(grad)
        gradients.append([leaf.grad for leaf in leaves])
    for torchs, ours in zip(*gradients, strict=True):
        error = (torchs - ours).abs().max()
        assert error <= 1e-6 * torchs.abs().max()


def test_the_gradients_are_those_of_small_changes():
    x, weight, bias = (t.double().requires_grad_(True) for t in case(shape=(2, 8, 2, 3)))
    assert torch.autograd.gradcheck(
        lambda *inputs: group_norm_nhwc(inputs[0], 2, *inputs[1:], 1e-5), (x, weight, bias)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0, 10])
def test_in_half_precision_the_result_alone_is_rounded(dtype, mean):
    """Half a unit in the last place: nothing that ends in this type can be nearer."""
    x, weight, bias = case(dtype, mean)
    exact = F.group_norm(x.double(), 6, weight.double(), bias.double(), 1e-5)
    with torch.autocast("cpu", dtype=dtype):
        normed = group_norm_nhwc(x, 6, weight, bias, 1e-5)
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5
    assert ((normed - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0, 10])
def test_torchs_kernel_for_half_precision_rounds_weights_and_result_alone(dtype, mean):
    """The statistics are float32's: half a unit each for the scale, the shift and the result."""
    x, weight, bias = case(dtype, mean)
    exact = F.group_norm(x.double(), 6, weight.double(), bias.double(), 1e-5)
    with torch.autocast("cpu", dtype=dtype):
        normed = group_norm_half(x, 6, weight, bias, 1e-5)
    assert normed.dtype == dtype
    shift = bias.double().abs().view(1, -1, 1, 1)
    scaled = (exact - bias.double().view(1, -1, 1, 1)).abs()
    bound = torch.finfo(dtype).eps / 2 * (scaled + shift + exact.abs()) * 1.01 + 1e-5
    assert ((normed - exact).abs() <= bound).all()


def test_gradients_in_half_precision_are_those_of_float32_but_for_rounding():
    x, weight, bias = case(torch.bfloat16)
    grad = torch.randn(x.shape)
    gradients = []
    for dtype, norm in ((torch.float64, F.group_norm), (torch.bfloat16, group_norm_half)):
        leaves = [x.to(dtype).requires_grad_(True)]
        leaves += [
            t.clone()
            .to(torch.float64 if dtype == torch.float64 else torch.float32)
            .requires_grad_(True)
            for t in (weight, bias)
        ]
        norm(leaves[0], 6, leaves[1], leaves[2], 1e-5).backward(grad.to(dtype))
        gradients.append([leaf.grad.double() for leaf in leaves])
    for exact, rounded in zip(*gradients, strict=True):
        assert (exact - rounded).norm() <= 0.02 * exact.norm()


def test_a_fresh_layer_is_torchs():
    """What is exported, and computed on a CPU, is torch's own operator."""
    x, _, _ = case()
    layer = GroupNorm(24, 1e-5)
    assert torch.equal(layer(x), F.group_norm(x, 6, layer.weight, layer.bias, 1e-5))
    layer.keeps_layout = True
    torch.testing.assert_close(layer(x), F.group_norm(x, 6, layer.weight, layer.bias, 1e-5))
