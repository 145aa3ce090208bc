"""A training that diverges ends with one line, and what was good on disk stays as it was."""

import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.checkpoints import load_network, load_state
from distill.errors import UserError
from distill.methods.sid import Sid, SidConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.divergence import Tally, diagnose_images, diagnose_steps, diagnose_weights
from distill.training.loop import train

CPU = DistributedContext(torch.device("cpu"))
NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), dropout=0.0,
)  # fmt: skip
SID = SidConfig(total_images=400, batch=4, lr=1e-3, ema_halflife=40, checkpoint_every=80, alpha=1.0)
METADATA = {"role": "generator", "classes": ["a", "b"]}


def make(**changes):
    torch.manual_seed(0)
    return Distillation(Sid(SID.model_copy(update=changes)), Denoiser(NETWORK), CPU)


def break_from(training, step, until=math.inf):
    """Have the generator draw NaN from one step on."""
    steps = []
    whole = training.step

    def counted(seen):
        steps.append(seen)
        return whole(seen)

    training.step = counted
    training.generator.network.register_forward_hook(
        lambda _m, _i, output: output * math.nan if step <= len(steps) < until else output
    )


def test_both_learning_rates_are_named_where_there_are_two(tmp_path):
    training = make(fake_lr=5.0)
    break_from(training, 0)
    with pytest.raises(UserError, match=r"smaller --lr than 0\.001 and --fake-lr than 5$"):
        train(training, tmp_path, METADATA, progress=False)


def test_a_run_that_diverges_ends_and_keeps_the_last_good_network(tmp_path, capsys):
    """From step 38 on no step has a gradient: the checkpoint due at step 40 is not written."""
    training = make()
    break_from(training, 38)
    with pytest.raises(UserError) as error:
        train(training, tmp_path, METADATA, progress=False)
    assert str(error.value).count("\n") == 0
    assert "steps of the fake score had no finite gradient" in str(error.value)
    assert f"{tmp_path} keeps the network of 80 images" in str(error.value)
    assert "smaller --lr than 0.001" in str(error.value)
    network, metadata = load_network(tmp_path / "network.safetensors")
    assert metadata["images_seen"] == load_state(tmp_path / "state.pt")["images_seen"] == 80
    assert diagnose_weights([network]) is None
    assert "steps were skipped" in capsys.readouterr().out


@pytest.mark.slow
def test_steps_that_are_skipped_now_and_then_are_counted_and_shown(tmp_path, capsys):
    training = make()
    break_from(training, 38, until=42)
    assert train(training, tmp_path, METADATA, progress=False) == 400
    events = EventAccumulator(str(tmp_path)).Reload()
    for name in ("fake score", "generator"):
        points = [point.value for point in events.Scalars(f"skipped steps/{name}")]
        assert points == [4, 4]
        points = [point.value for point in events.Scalars(f"samples left out/{name}")]
        assert points == [16, 16]
    shown = capsys.readouterr().out
    assert "generator: 4 steps were skipped and 16 samples left out so far" in shown


@pytest.mark.slow
@pytest.mark.parametrize("what", ["weights", "images"])
def test_a_network_without_images_never_replaces_a_good_one(what, tmp_path):
    """Every step has a finite gradient, and still the average draws nothing any more."""
    train(make(total_images=80), tmp_path, METADATA, progress=False)
    whole = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.suffix != "" and p.is_file()}
    training = make()
    before = training.step

    def step(seen):
        scalars = before(seen)
        with torch.no_grad():
            weights = list(training.ema.parameters())
            if what == "weights":
                weights[3][0] = math.nan
            else:
                for weight in weights:
                    weight.fill_(1e4)
        return scalars

    training.step = step
    with pytest.raises(UserError, match=f"{what} .*keeps the network of 80 images"):
        train(training, tmp_path, METADATA, progress=False)
    for name in ("network.safetensors", "state.pt"):
        assert (tmp_path / name).read_bytes() == whole[name]


def test_what_counts_as_diverged():
    assert diagnose_steps({"teacher": Tally(0, 500, 9)}, 1000) is None
    assert diagnose_steps({"teacher": Tally(0, 500, 10)}, 1000)
    assert diagnose_steps({"teacher": Tally(0, 3, 2)}, 8) is None
    assert diagnose_steps({"teacher": Tally(0, 4, 4)}, 8)
    assert diagnose_steps({"teacher": Tally(0, 0, 0)}, 1) is None


def test_which_images_count_as_diverged():
    noise = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert diagnose_images(noise) is None
    flat = torch.linspace(-1, 1, 16).view(16, 1, 1, 1).expand(16, 3, 8, 8)
    assert diagnose_images(flat) is None  # each of one colour, but not of the same
    assert diagnose_images(noise[:1].expand(16, 3, 8, 8)) is None  # one image was learned
    assert "colour" in diagnose_images(-torch.ones(16, 3, 8, 8))
    assert "colour" in diagnose_images(torch.tensor([1.0, 0.2, -1]).view(1, 3, 1, 1) + 0 * noise)
    assert "brightest" in diagnose_images(noise * 1e6)
    noise[3, 0, 0, 0] = math.nan
    assert "not finite" in diagnose_images(noise)
