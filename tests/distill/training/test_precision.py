"""A distance is measured in float32, whatever a training computes in; 'evaluate' says the same."""

import pytest
import torch

from distill.checkpoints import load_network, save_network
from distill.evaluation.evaluate import measure, one_step_sampler
from distill.evaluation.feature_extractor import FeatureExtractor, FeatureModule
from distill.evaluation.frechet import statistics
from distill.evaluation.reference import Reference
from distill.methods.sid import Sid, SidConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.precision import full_float32

NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), dropout=0.0,
)  # fmt: skip


def switches():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def tf32():
    """The switches as a training with --precision tf32 leaves them."""
    before = switches()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class Rows(FeatureModule):
    """The pixels themselves, noting the switches under which they were looked at."""

    dimensions = 8

    def __init__(self):
        super().__init__()
        self.seen = []

    def extract(self, pixels, probabilities):  # noqa: ARG002
        self.seen.append(switches())
        return pixels[:, 0].float().mean(dim=2), None


@pytest.mark.usefixtures("tf32")
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
        sampler = one_step_sampler(network, 2.5)
        measured = measure(sampler, network, extractor, images=256, reference=reference)
        distances.append(measured["distance"])
        assert set(features.seen) == {(False, False)}
    assert distances[0] == distances[1]
    assert training.ema.compute_dtype is torch.bfloat16
    assert switches() == (True, True)


@pytest.mark.usefixtures("tf32")
def test_the_switches_come_back_after_an_error():
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert switches() == (True, True)
