"""The forms of a network: which is taken, that maps keep their layout, and compiled blocks."""

import copy
from typing import Literal

import pytest
import torch
from torch import nn

from distill.errors import UserError
from distill.methods.sid import Sid, SidConfig
from distill.networks import Denoiser, NetworkLayout, RawNetwork
from distill.networks.block import UNetBlock
from distill.networks.edm import EdmConfig
from distill.networks.layers import Conv2d
from distill.networks.song import DDPMPP
from distill.training import form_choice
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.form_choice import (
    Measured,
    choose_form,
    described,
    fastest,
    measure_forms,
    median_seconds,
)
from distill.training.network_form import compile_blocks, lay_out
from tests.distill.training.aten_recorder import AtenRecorder

CPU = DistributedContext(torch.device("cpu"))
CUDA = torch.device("cuda")  # nothing here computes there
SMALL = {
    "img_resolution": 8, "img_channels": 3, "label_dim": 2, "augment_dim": 9, "model_channels": 64,
    "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,), "dropout": 0.1,
}  # fmt: skip
SID = SidConfig(
    total_images=64, batch=8, microbatch=4, lr=3e-4, ema_halflife=1000, checkpoint_every=64
)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


class Toy(RawNetwork):
    """Four blocks of one kind, behind a convolution."""

    def __init__(self, config):
        super().__init__()
        self.map_noise = nn.Linear(1, 8)
        self.first = nn.Conv2d(config.img_channels, 8, 1)
        self.steps = nn.ModuleList(UNetBlock(8, 8, 8, config.dropout, DDPMPP) for _ in range(4))

    def embed(self, c_noise, class_labels, augment_labels):  # noqa: ARG002
        return self.map_noise(c_noise[:, None])

    def encode(self, x, emb):  # noqa: ARG002
        return [self.first(x)]

    def decode(self, features, emb):
        x = features[-1]
        for step in self.steps:
            x = step(x, emb)
        return x

    def blocks(self):
        return self.steps


class ToyLayout(NetworkLayout):
    """Eight channels of image."""

    architecture: Literal["toy"] = "toy"

    def build(self):
        return Toy(self)


TOY = ToyLayout(img_resolution=4, img_channels=8, dropout=0.5)


@pytest.fixture
def compiler():
    """torch.compile's settings and caches as they were, after a test that compiled."""
    torch._dynamo.reset()
    limits = {"recompile_limit": 8, "accumulated_recompile_limit": 256}
    with torch._dynamo.config.patch(limits), torch._inductor.config.patch(fallback_random=False):
        yield
    torch._dynamo.reset()


def graphs_compiled():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def micro_batch(network):
    torch.manual_seed(1)
    x = torch.randn(2, *network.config.latent_shape).contiguous(memory_format=torch.channels_last)
    return network(x, torch.ones(2, 1, 1, 1)), x


@pytest.mark.parametrize("form", ["nchw", "channels_last"])
@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_on_cuda_each_convolution_is_given_the_layout_of_the_form(form, architecture, precision):
    """Forward and backward: a map in another layout would be copied there, each time.

    But for the gradients of images, which have few channels, and of q, k and v, of small maps.
    """
    torch.manual_seed(0)
    network = Denoiser(EdmConfig(architecture=architecture, **SMALL))
    network.compute_dtype = precision
    lay_out(network, form, CUDA)
    seen = []

    def look(module, inputs, output):
        for tensor in (*inputs, output):
            seen.append(tensor.is_contiguous(memory_format=LAYOUTS[form]))
        if module not in excepted:
            output.register_hook(
                lambda grad: seen.append(grad.is_contiguous(memory_format=LAYOUTS[form]))
            )

    modules = network.model.named_modules()
    convolutions = {name: module for name, module in modules if isinstance(module, Conv2d)}
    excepted = [
        module for name, module in convolutions.items()
        if name.endswith(("qkv", "aux_conv", "out_conv"))
    ]  # fmt: skip
    assert len(excepted) > 3, "blocks attend, and one convolution ends in images"
    for convolution in convolutions.values():
        convolution.register_forward_hook(look)
    denoised, x = micro_batch(network)
    denoised.square().sum().backward()
    assert len(seen) == 3 * len(convolutions) - len(excepted)
    assert all(seen), f"{seen.count(False)} of {len(seen)}"
    assert denoised.stride() == x.stride(), "a drawing of noise like these images follows it"


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
def test_the_forms_are_one_network(architecture):
    torch.manual_seed(0)
    network = Denoiser(EdmConfig(architecture=architecture, **SMALL)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    expected, _ = micro_batch(network)
    for form in LAYOUTS:
        other = copy.deepcopy(network)
        lay_out(other, form, CUDA)
        compile_blocks(copy.deepcopy(other))
        assert other.state_dict().keys() == network.state_dict().keys()
        torch.testing.assert_close(micro_batch(other)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_fastest_is_taken_and_said():
    table = Measured({"nchw": 0.0034, "channels_last": 0.003, "compiled": 0.00212}, {}, True)
    assert fastest(table.seconds) == "compiled"
    assert described("compiled", table) == (
        "network form: compiled (2.12 ms a micro-batch, nchw 3.4, channels_last 3; "
        "measured as CUDA graphs)"
    )
    lame = Measured({"nchw": 0.0034, "channels_last": 0.003}, {"compiled": "no Triton"}, False)
    assert fastest(lame.seconds) == "channels_last"
    assert described("channels_last", lame) == (
        "network form: channels_last (3 ms a micro-batch, nchw 3.4; measured without CUDA graphs; "
        "compiled cannot be: no Triton)"
    )


def test_measuring_leaves_the_network_and_the_draws_alone():
    network = Denoiser(EdmConfig(**SMALL)).eval().requires_grad_(False)
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    table = measure_forms(("nchw", "channels_last"), network, 2, "float32", CPU)
    assert torch.equal(torch.rand(3), expected)
    assert table.seconds.keys() == {"nchw", "channels_last"}
    assert min(table.seconds.values()) > 0
    assert not table.failed
    assert not network.training
    assert network.memory_format is None
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, weights[name])
        assert not weight.requires_grad
        assert weight.grad is None


class Refuses(AtenRecorder):
    """Captures nothing, for a reason of its own."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def record(self, work):  # noqa: ARG002
        self.recorded += 1
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("it waits"), torch.OutOfMemoryError("no room")])
def test_a_form_that_cannot_be_captured_leaves_the_device_to_the_others(error, monkeypatch):
    """It counts as failed where memory ran out; else all are measured without graphs."""
    recorder = Refuses(error)
    monkeypatch.setattr(form_choice, "CudaRecorder", lambda _device: recorder)
    forms = ("nchw", "channels_last")
    table = measure_forms(forms, Denoiser(TOY), 2, "float32", CPU, replayed=True)
    assert recorder.cleaned_up == recorder.recorded
    if isinstance(error, torch.OutOfMemoryError):
        assert table.failed == dict.fromkeys(forms, "no room")
    else:
        assert recorder.recorded == 1
        assert not table.replayed
        assert table.seconds.keys() == set(forms)


def test_what_is_captured_is_replayed_to_be_measured(monkeypatch):
    recorder = AtenRecorder()
    monkeypatch.setattr(form_choice, "CudaRecorder", lambda _device: recorder)
    table = measure_forms(("nchw",), Denoiser(TOY), 2, "float32", CPU, replayed=True)
    assert table.replayed
    assert recorder.recorded == 1 < recorder.replayed
    assert recorder.cleaned_up == 0


@pytest.mark.parametrize(
    ("before", "after"), [("nchw", "channels_last"), ("channels_last", "nchw")]
)
def test_a_run_is_resumed_in_another_form(before, after, monkeypatch):
    """A fused Adam takes moments to lie in memory as the weights do."""

    def made(form):
        monkeypatch.setattr("distill.training.distillation.choose_form", lambda *_: form)
        torch.manual_seed(0)
        return Distillation(Sid(SID), Denoiser(EdmConfig(**SMALL)), CPU)

    first = made(before)
    first.step(0)
    state, second = first.state(), made(after)
    second.load_state(state)
    for old, new in zip(first.learners.values(), second.learners.values(), strict=True):
        for was, weight in zip(old.parameters, new.parameters, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                moment = new.optimizer.state[weight][name]
                assert moment.stride() == weight.stride()
                assert torch.equal(moment, old.optimizer.state[was][name])


def test_a_call_that_takes_long_is_not_repeated_often(monkeypatch):
    monkeypatch.setattr(form_choice, "MEASURE_SECONDS", 0.0)
    calls = []
    median_seconds(lambda: calls.append(1), CPU.device)
    assert len(calls) == 4, "it was warmed up, and timed once"


@pytest.mark.usefixtures("compiler")
def test_compiling_that_takes_too_long_is_given_up_and_said():
    table = measure_forms(
        ("channels_last", "compiled"), Denoiser(TOY), 3, "float32", CPU, patience=0.0
    )
    assert table.seconds.keys() == {"channels_last"}
    assert "compiling took over 0 s: --compile on waits for it" in table.failed["compiled"]
    assert not torch._dynamo.callback.callback_handler.start_callbacks


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_a_cpu_takes_channels_last_without_measuring(choice, capsys):
    assert choose_form(choice, Denoiser(TOY), SID, CPU) == "channels_last"
    assert not capsys.readouterr().out


def test_sharded_networks_are_not_compiled():
    sharded = DistributedContext(torch.device("cpu"), shard=True)
    assert choose_form("auto", Denoiser(TOY), SID, sharded) == "channels_last"
    with pytest.raises(UserError, match="--shard are not compiled"):
        choose_form("on", Denoiser(TOY), SID, sharded)


@pytest.mark.long
@pytest.mark.usefixtures("compiler")
def test_a_compiled_distillation_is_the_eager_one_and_compiles_a_kind_of_block_once(capsys):
    """The same losses, so the same draws: of dropout too.

    Four ways: the fake score learns; the generator, with one noise level for all images, learns or
    only draws; teacher and fake score hand gradients on.
    """
    steps = {}
    before = graphs_compiled()
    for choice in ("off", "on"):
        torch.manual_seed(0)
        training = Distillation(Sid(SID), Denoiser(TOY), CPU, compile_choice=choice)
        steps[choice] = [training.step(images) for images in (0, 8)]
    assert capsys.readouterr().out.startswith("network form: compiled (")
    for eager, compiled in zip(*steps.values(), strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-7)
    assert graphs_compiled() - before == 4
    compiled = training.generator.network
    assert compiled.state_dict().keys() == Denoiser(TOY).state_dict().keys()
    assert all(block._compiled_call_impl is not None for block in compiled.model.blocks())
    assert all(block._compiled_call_impl is None for block in training.ema.model.blocks())


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_one_compilation_too_many_is_an_error(monkeypatch):
    network = Denoiser(TOY).eval().requires_grad_(False)
    monkeypatch.setattr("distill.training.network_form.COMPILATIONS", 1)
    compile_blocks(network)
    micro_batch(network)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        network(torch.zeros(5, *TOY.latent_shape), torch.ones(5, 1, 1, 1))
