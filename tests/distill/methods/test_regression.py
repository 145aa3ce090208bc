"""The warm start of a tiny network: what pairs are, that one step learns them, where SiD begins."""

from pathlib import Path

import numpy as np
import pytest
import torch

import distill
from distill.checkpoints import load_network, save_network
from distill.cli import main
from distill.data.images import from_pixels
from distill.errors import UserError
from distill.methods.losses import regression_loss
from distill.methods.pairs import PAIRS_PER_PART, draw_pairs, pair_labels, pair_latents
from distill.methods.regression import RegressionTraining
from distill.methods.sid import Sid, SidConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.sampling import heun, one_step
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.loop import train
from distill.training_config import RegressionConfig

CPU = DistributedContext(torch.device("cpu"))
AVATARS_TEACHER = Path(distill.__file__).parent / "pretrained" / "avatars-teacher.safetensors"
NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=16, channel_mult=(1, 2),
    num_blocks=1, attn_resolutions=(),
)  # fmt: skip
CONFIG = RegressionConfig(
    pairs=300, steps=3, sigma_init=20.0, total_images=4_800, batch=64, lr=4e-3, warmup=500,
    ema_halflife=300, checkpoint_every=10_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher():
    """One whose images depend on noise and class: of random weights, for it need not be good."""
    torch.manual_seed(1)
    network = Denoiser(NETWORK)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


@pytest.fixture
def teacher_file(teacher, tmp_path):
    file = tmp_path / "teacher.safetensors"
    save_network(file, teacher, {"role": "teacher", "classes": ["row", "column"]})
    return file


def test_a_pair_is_what_the_teacher_makes_of_the_noise_of_that_number(teacher, tmp_path):
    pairs = draw_pairs(teacher, CONFIG, tmp_path, CPU, progress=False)
    assert len(pairs) == 300
    z = pair_latents(NETWORK, 0, [299, 4])
    assert torch.equal(z, torch.cat([pair_latents(NETWORK, 0, [i]) for i in (299, 4)]))
    labels = pair_labels(NETWORK, torch.tensor([299, 4]))
    assert labels.tolist() == [[0, 1], [1, 0]]
    images = from_pixels(pairs.images[[299, 4]])
    drawn = heun(teacher, z, labels, CONFIG.steps, sigma_max=20.0).clamp(-1, 1)
    assert (drawn - images).abs().max() <= 1 / 127.5


def test_noises_differ_by_number_and_seed_and_are_normal():
    z = pair_latents(NETWORK, 0, list(range(200)))
    others = pair_latents(NETWORK, 2**63, list(range(200)))
    assert len(torch.cat([z, others]).flatten(1).unique(dim=0)) == 400
    assert abs(z.mean()) < 0.05
    assert abs(z.std() - 1) < 0.05


def test_an_interrupted_drawing_goes_on_and_keeps_what_it_has(teacher, tmp_path):
    whole = draw_pairs(teacher, CONFIG, tmp_path, CPU, progress=False)
    kept, lost = (tmp_path / f"{i:06}.npy" for i in (0, 1))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    assert torch.equal(draw_pairs(teacher, CONFIG, tmp_path, CPU, False).images, whole.images)
    assert kept.stat().st_mtime_ns == before
    assert np.load(lost).shape == (PAIRS_PER_PART, 1, 8, 8)


def test_pairs_of_another_teacher_or_level_are_refused_by_name(teacher, tmp_path):
    draw_pairs(teacher, CONFIG, tmp_path, CPU, progress=False)
    other = CONFIG.model_copy(update={"sigma_init": 10.0})
    with pytest.raises(UserError, match="another sigma_init"):
        draw_pairs(teacher, other, tmp_path, CPU, progress=False)
    with pytest.raises(UserError, match="another teacher"):
        draw_pairs(Denoiser(NETWORK), CONFIG, tmp_path, CPU, progress=False)


def test_a_damaged_part_is_named(teacher, tmp_path):
    draw_pairs(teacher, CONFIG, tmp_path, CPU, progress=False)
    part = tmp_path / "000001.npy"
    part.write_bytes(part.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"000001\.npy is damaged .*: remove it"):
        draw_pairs(teacher, CONFIG, tmp_path, CPU, progress=False)


@pytest.mark.parametrize("content", ["", "[]", '{"teacher": '])
def test_a_damaged_note_of_what_the_pairs_are_is_named(teacher, tmp_path, content):
    (tmp_path / "pairs.json").write_text(content)
    with pytest.raises(UserError, match=r"pairs\.json is damaged: remove"):
        draw_pairs(teacher, CONFIG, tmp_path, CPU, progress=False)


@pytest.mark.parametrize("name", ["augment", "noise_mean", "noise_std"])
def test_what_a_regression_does_not_do_is_refused_in_its_recipe(name):
    with pytest.raises(ValueError, match=f"{name} changes nothing"):
        RegressionConfig.model_validate(CONFIG.model_dump() | {name: 0.5})


@pytest.mark.slow
def test_one_step_learns_what_the_teacher_draws_in_many(teacher, tmp_path):
    pairs = draw_pairs(teacher, CONFIG, tmp_path / "pairs", CPU, progress=False)
    training = RegressionTraining(teacher, pairs, CONFIG, CPU)
    numbers = torch.arange(1000, 1200)  # none of the pairs
    z, labels = pair_latents(NETWORK, 0, numbers.tolist()), pair_labels(NETWORK, numbers)
    real = heun(teacher, z, labels, CONFIG.steps, sigma_max=20.0).clamp(-1, 1)

    def error(network):
        with torch.no_grad():
            return regression_loss(one_step(network, z, labels, 20.0), real).mean().item()

    before = error(teacher)
    train(training, tmp_path / "run", {"role": "generator", "classes": ["row", "column"]})
    assert error(training.ema) < 0.7 * before


def test_sid_begins_where_the_regression_ended(teacher):
    torch.manual_seed(2)
    start = Denoiser(NETWORK)
    method = Sid(SidConfig(total_images=64, batch=64, checkpoint_every=64, sigma_init=20.0))
    training = Distillation(method, teacher, CPU, start)

    def same(network, other):
        pairs = zip(network.parameters(), other.parameters(), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    assert same(training.generator.network, start)
    assert same(training.ema, start)
    assert same(training.fake_score.network, teacher)
    assert same(training.teacher, teacher)
    assert training.identity() != Distillation(method, teacher, CPU).identity()


def run(capsys, *arguments):
    """The exit code of `sid-distill run` and the last line that it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sid-distill", "run", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return end.value.code, capsys.readouterr().err.splitlines()[-1]


def test_what_cannot_be_a_start_is_refused_before_anything_is_computed(
    teacher, teacher_file, tmp_path, capsys
):
    out, file = tmp_path / "run", tmp_path / "start.safetensors"
    common = ["--teacher", teacher_file, "--features", "none", "--out", out, "--generator", file]
    generator = {"role": "generator", "classes": ["row", "column"], "sigma_init": 20.0}

    save_network(file, teacher, {"role": "teacher", "classes": ["row", "column"]})
    assert "is no generator" in run(capsys, *common)[1]
    save_network(file, teacher, generator | {"classes": ["row", "stripe"]})
    assert "other classes" in run(capsys, *common)[1]
    save_network(file, Denoiser(NETWORK.model_copy(update={"model_channels": 32})), generator)
    assert "another shape" in run(capsys, *common)[1]
    save_network(file, teacher, generator)
    code, line = run(capsys, *common, "--sigma-init", 2.5)
    assert (code, "sigma_init 20, not at 2.5" in line) == (2, True)
    assert not out.exists()


def test_from_pairs_to_a_generator_by_the_commands(teacher_file, tmp_path, monkeypatch):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'description = "tiny"\n[network]\n'
        "img_resolution = 8\nimg_channels = 1\nlabel_dim = 2\nmodel_channels = 16\n"
        "channel_mult = [1, 2]\nnum_blocks = 1\nattn_resolutions = []\n"
        "[regression]\npairs = 100\nsteps = 2\nsigma_init = 20.0\ntotal_images = 128\nbatch = 64\n"
        "lr = 1e-3\nema_halflife = 100\ncheckpoint_every = 64\n"
        "[sid]\ntotal_images = 64\nbatch = 64\ncheckpoint_every = 64\n"
    )
    common = ["--recipe", recipe, "--teacher", teacher_file, "--device", "cpu"]
    start = tmp_path / "start" / "network.safetensors"
    for arguments in (
        ["regress", *common, "--out", start.parent],
        ["run", *common, "--features", "none", "--generator", start, "--out", tmp_path / "run"],
    ):
        monkeypatch.setattr("sys.argv", ["sid-distill", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
    _, metadata = load_network(tmp_path / "run" / "network.safetensors")
    assert (metadata["role"], metadata["sigma_init"]) == ("generator", 20.0)
    assert metadata["started_from"] == "128 images of regression"


@pytest.mark.long
def test_the_avatars_recipe_goes_from_its_teacher_to_a_generator(tmp_path, monkeypatch):
    """What docs/results/avatars.md says of models/avatars, at toy size."""
    start = tmp_path / "start" / "network.safetensors"
    common = ["--recipe", "avatars", "--teacher", AVATARS_TEACHER, "--images", 64]
    for arguments in (
        ["regress", *common, "--pairs", 64, "--steps", 2, "--out", start.parent],
        ["run", *common, "--features", "none", "--generator", start, "--out", tmp_path / "run"],
    ):
        monkeypatch.setattr("sys.argv", ["sid-distill", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
    _, metadata = load_network(tmp_path / "run" / "network.safetensors")
    assert (metadata["images_seen"], metadata["sigma_init"]) == (64, 40.0)
    assert metadata["licence"] == "CC0-1.0"
