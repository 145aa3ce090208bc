"""Winograd's convolution is torch's convolution, where it is used at all."""

import copy

import pytest
import torch
from torch.nn import functional as F

from distill.methods.sid import SidTraining
from distill.networks import Denoiser, NetworkConfig, winograd
from distill.networks.layers import BINOMIAL, Conv2d, kaiming, use_winograd
from distill.recipe import SidConfig
from distill.training.distributed import World

WIDE = NetworkConfig(
    img_resolution=8, img_channels=1, model_channels=64, channel_mult=(1, 2), num_blocks=1,
    attn_resolutions=(), dropout=0.0,
)  # fmt: skip
CPU = World(torch.device("cpu"))


def layer(cin, cout, kernel=3, **options):
    torch.manual_seed(0)
    return Conv2d(cin, cout, kernel, kaiming, **options)


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("n", "cin", "cout", "height", "width"),
    [
        (3, 5, 7, 8, 4),
        (1, 64, 96, 4, 4),
        (5, 16, 8, 32, 32),  # more tiles than are worked on at once
        (67, 3, 2, 4, 4),
    ],
)
def test_outputs_and_gradients_are_those_of_the_direct_form(n, cin, cout, height, width, memory):
    torch.manual_seed(0)
    x = torch.randn(n, cin, height, width).to(memory_format=memory)
    weight, bias = torch.randn(cout, cin, 3, 3).to(memory_format=memory), torch.randn(cout)
    upstream = torch.randn(n, cout, height, width)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    found, expected = winograd.convolve(*inputs), F.conv2d(*exact, padding=1)
    assert relative(found, expected) < 1e-4
    gradients = torch.autograd.grad(found, inputs, upstream)
    for one, other in zip(
        gradients, torch.autograd.grad(expected, exact, upstream.double()), strict=True
    ):
        assert one.shape == other.shape
        assert relative(one, other) < 1e-4


def test_only_the_gradients_asked_for_are_computed():
    x, weight, bias = torch.randn(1, 4, 4, 4), torch.randn(4, 4, 3, 3), torch.randn(4)
    winograd.convolve(x.requires_grad_(), weight, bias).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
    assert bias.grad is None


@pytest.mark.parametrize("options", [{}, {"up": True}, {"down": True}])
def test_a_wide_layer_takes_it_and_still_resamples(options, monkeypatch):
    direct = layer(64, 64, **options)
    fast = copy.deepcopy(direct)
    use_winograd(fast)
    seen = []
    convolve = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *a: seen.append(a[0].shape) or convolve(*a))
    x = torch.randn(2, 64, 8, 8)
    assert relative(fast(x), direct(x)) < 1e-4
    assert len(seen) == 1  # by the fast one alone
    assert fast.state_dict().keys() == direct.state_dict().keys()


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (torch.randn(2, 64, 7, 8), {}),
        (torch.randn(2, 64, 8, 6), {}),
        (torch.randn(2, 64, 4, 4), {"down": True}),  # divisible before the resampling alone
    ],
)
def test_other_sizes_take_the_direct_form(x, options):
    direct = layer(64, 64, **options)
    fast = copy.deepcopy(direct)
    use_winograd(fast)
    assert fast.winograd
    assert torch.equal(fast(x), direct(x))


def test_other_types_take_the_direct_form():
    direct = layer(64, 64).double()
    fast = copy.deepcopy(direct)
    use_winograd(fast)
    x = torch.randn(1, 64, 8, 8, dtype=torch.float64)
    assert torch.equal(fast(x), direct(x))


def test_only_wide_3x3_layers_are_switched():
    layers = {
        "wide": layer(64, 64),
        "thin in": layer(63, 64),
        "thin out": layer(64, 3),
        "1x1": layer(64, 64, kernel=1),
        "resampling alone": layer(64, 64, kernel=0, up=True),
        "fused": layer(64, 64, down=True, resample=BINOMIAL, fused=True),
    }
    use_winograd(torch.nn.ModuleList(layers.values()))
    assert [name for name, one in layers.items() if one.winograd] == ["wide"]


def switched(network):
    return any(isinstance(m, Conv2d) and m.winograd for m in network.modules())


@pytest.mark.parametrize(("precision", "expected"), [("float32", True), ("bfloat16", False)])
def test_what_learns_is_switched_and_what_is_exported_is_not(precision, expected):
    config = SidConfig(total_images=8, batch=8, checkpoint_every=8, precision=precision)
    training = SidTraining(Denoiser(WIDE), config, CPU)
    learning = (training.teacher, training.fake_score.network, training.generator.network)
    assert [switched(network) for network in learning] == [expected] * 3
    assert not switched(training.ema)
