"""Precision is set in one place; what is measured or shown is in float32, whatever trains."""

import pytest
import torch

from distill.analysis.paired_images import draw_paired_images
from distill.analysis.report import probe_run
from distill.analysis.run_folder import Networks
from distill.checkpoints import load_network, save_network
from distill.evaluation.evaluate import collect_feature_stats, few_step_sampler, measure
from distill.evaluation.feature_extractor import FeatureExtractor, FeatureModule
from distill.evaluation.frechet import statistics
from distill.evaluation.reference import Reference
from distill.methods.sid import Sid, SidConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.precision import (
    EXACT,
    Switches,
    compute_dtype,
    current_switches,
    full_float32,
    set_switches,
)
from distill.training.start_level import fitting_sigma_init

NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), dropout=0.0,
)  # fmt: skip


LOOSE = Switches(tf32_products=True, tf32_convolutions=True, low_sums=True, benchmark=True)


@pytest.fixture
def loose():
    """All switches the other way round from what is exact."""
    before = current_switches()
    set_switches(LOOSE)
    yield
    set_switches(before)


@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_a_training_on_a_card_sets_every_switch(precision):
    compute_dtype(precision, torch.device("cuda"))
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    tf32 = precision == "tf32"
    assert (matmul.allow_tf32, cudnn.allow_tf32) == (tf32, tf32)
    assert not matmul.allow_bf16_reduced_precision_reduction
    assert not matmul.allow_fp16_reduced_precision_reduction
    assert cudnn.benchmark


class Rows(FeatureModule):
    """The pixels themselves, noting the switches under which they were looked at."""

    dimensions = 8

    def __init__(self):
        super().__init__()
        self.seen = []

    def extract(self, pixels, probabilities):  # noqa: ARG002
        self.seen.append(current_switches())
        return pixels[:, 0].float().mean(dim=2), None


@pytest.mark.usefixtures("loose")
def test_a_training_measures_what_evaluate_measures(tmp_path):
    torch.manual_seed(0)
    config = SidConfig(
        total_images=32,
        batch=8,
        lr=1e-2,
        precision="bfloat16",
        ema_halflife=40,
        checkpoint_every=32,
    )
    training = Distillation(Sid(config), Denoiser(NETWORK), DistributedContext(torch.device("cpu")))
    for step in range(4):
        training.step(8 * step)
    assert training.ema.compute_dtype is torch.bfloat16
    metadata = {"role": "generator", "classes": ["a", "b"], "sigma_init": 2.5}
    save_network(tmp_path / "g.safetensors", training.ema, metadata)
    kept, _ = load_network(tmp_path / "g.safetensors")
    real = torch.rand(300, 8, generator=torch.Generator().manual_seed(1)) * 255
    reference = Reference(statistics(real.double().numpy()), "noise")
    distances = []
    for network in (training.ema, kept):
        features = Rows()
        extractor = FeatureExtractor("rows", features)
        sampler = few_step_sampler(network, 2.5)
        measured = measure(sampler, network, extractor, images=256, reference=reference)
        distances.append(measured["distance"])
        assert set(features.seen) == {EXACT}
    assert distances[0] == distances[1]
    assert training.ema.compute_dtype is torch.bfloat16
    assert current_switches() == LOOSE


@pytest.mark.usefixtures("loose")
def test_the_switches_come_back_after_an_error():
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert current_switches() == LOOSE


def noting(seen):
    """A network that notes the switches under which it computes."""
    torch.manual_seed(0)
    network = Denoiser(NETWORK).eval()
    for weight in network.parameters():
        if weight.dim() > 1:  # the last layers begin near 0, and it would draw nothing
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    network.register_forward_hook(lambda *_: seen.append(current_switches()))
    return network


def evaluate(network):
    extractor = FeatureExtractor("rows", Rows())
    collect_feature_stats(few_step_sampler(network, 2.5), network, [extractor], 256)


def fit_the_start(network):
    fitting_sigma_init(network)


def analyze(network):
    settings = {"sigma_init": 2.5, "t_max": 800.0, "steps": 1, "renoise": "same"}
    networks = Networks(network, network, network, settings, ["a", "b"], 0)
    draw_paired_images(networks, 4, torch.device("cpu"), steps=2)
    probe_run(networks, 4, torch.device("cpu"))


@pytest.mark.usefixtures("loose")
@pytest.mark.parametrize("look", [evaluate, fit_the_start, analyze])
def test_whatever_looks_at_a_network_computes_in_float32(look):
    """torch's own default has CUDA round convolutions to TF32 where nobody trains."""
    seen = []
    look(noting(seen))
    assert set(seen) == {EXACT}
    assert current_switches() == LOOSE
