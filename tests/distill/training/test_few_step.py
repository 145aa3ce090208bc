"""Training in several steps: what is refused, what a run and its network say of their steps."""

import json

import pytest
import torch
from pydantic import ValidationError

from distill.checkpoints import load_network, save_network
from distill.errors import UserError
from distill.evaluation.evaluate import few_step_sampler
from distill.methods.sid import Sid, SidConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.sampling import sample_inputs
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.loop import train
from tests.distill.tiny_recipe import NETWORK, tiny_recipe

CPU = DistributedContext(torch.device("cpu"))
RUN = {"total_images": 16, "batch": 16, "microbatch": 8, "checkpoint_every": 16}


def teacher():
    torch.manual_seed(0)
    return Denoiser(EdmConfig(**NETWORK)).eval()


def distillation(**changes):
    return Distillation(Sid(SidConfig(**RUN | changes)), teacher(), CPU)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 3}, "Input should be 1, 2 or 4"),
        ({"steps": 4, "microbatch": 2}, "micro-batch of 2 images cannot be divided .* 4 steps"),
        ({"renoise": "fresh"}, 'renoise "fresh" changes nothing in one step'),
        ({"steps": 2, "renoise": "ddim"}, "'same' or 'fresh'"),
    ],
)
def test_steps_that_cannot_be_are_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        SidConfig(**RUN | changes)


def test_a_run_goes_on_in_its_own_steps_only(tmp_path):
    train(distillation(steps=2), tmp_path, {}, progress=False)
    for other in ({}, {"steps": 4}):
        with pytest.raises(UserError, match="holds a run with another steps: resume"):
            train(distillation(total_images=32, **other), tmp_path, {}, progress=False)
    fresh = distillation(total_images=32, steps=2, renoise="fresh")
    with pytest.raises(UserError, match="holds a run with another renoise: resume"):
        train(fresh, tmp_path, {}, progress=False)
    assert train(distillation(total_images=32, steps=2), tmp_path, {}, progress=False) == 32


def test_a_run_from_before_there_were_steps_is_one_of_one_step(tmp_path):
    train(distillation(), tmp_path, {}, progress=False)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    settings = json.loads(state["settings"])
    assert (settings.pop("steps"), settings.pop("renoise")) == (1, "same")
    torch.save(state | {"settings": json.dumps(settings)}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="another steps: resume"):
        train(distillation(total_images=32, steps=2), tmp_path, {}, progress=False)
    assert train(distillation(total_images=32), tmp_path, {}, progress=False) == 32


@pytest.mark.parametrize("steps", [2, 4])
def test_every_step_learns_and_samples_show_the_last(steps):
    training = distillation(steps=steps)
    training.step(0)
    latents, labels = sample_inputs(training.ema.config, CPU.device, 8)
    after_all = few_step_sampler(training.ema, 2.5, steps)(latents, labels)
    assert torch.equal(training.samples(8), after_all.detach())
    assert not torch.equal(after_all, few_step_sampler(training.ema, 2.5)(latents, labels))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`sid-distill run` of the tiny recipe: the exit code, and the last line of its errors."""
    from distill.cli import main

    file = tmp_path / "teacher.safetensors"
    save_network(file, teacher(), {"role": "teacher", "classes": []})
    (tmp_path / "tiny.toml").write_text(tiny_recipe(sid=RUN))
    common = ["--recipe", tmp_path / "tiny.toml", "--teacher", file, "--features", "none"]

    def run(*arguments):
        argv = ["sid-distill", "run", *common, "--sigma-init", "2.5", *arguments]
        monkeypatch.setattr("sys.argv", [str(argument) for argument in argv])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, (capsys.readouterr().err.splitlines() or [""])[-1]

    return run


def test_a_network_says_its_steps_where_it_has_several(run, tmp_path):
    assert run("--out", tmp_path / "one")[0] == 0
    _, metadata = load_network(tmp_path / "one" / "network.safetensors")
    assert not {"steps", "renoise"} & metadata.keys()
    assert run("--out", tmp_path / "two", "--steps", 2)[0] == 0
    _, metadata = load_network(tmp_path / "two" / "network.safetensors")
    assert (metadata["steps"], metadata["renoise"]) == (2, "same")


def test_a_start_is_of_one_step_or_of_the_runs_own(run, tmp_path):
    file, out = tmp_path / "start.safetensors", tmp_path / "run"
    generator = {"role": "generator", "classes": [], "sigma_init": 2.5}
    save_network(file, teacher(), generator | {"steps": 2})
    for steps in (1, 4):
        code, line = run("--out", out, "--generator", file, "--steps", steps)
        assert code == 2
        assert f"draws in 2 steps, this run in {steps}: say --steps 2" in line
    assert not out.exists()
    assert run("--out", out, "--generator", file, "--steps", 2)[0] == 0
    save_network(file, teacher(), generator)
    assert run("--out", tmp_path / "more", "--generator", file, "--steps", 4)[0] == 0
    assert run("--out", tmp_path / "odd", "--steps", 3)[1].endswith("Input should be 1, 2 or 4")
