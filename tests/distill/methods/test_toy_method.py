"""What it takes to add a method of distillation: its losses and section, one line of a registry."""

import json
from statistics import mean

import pytest
import torch
from pydantic import Field
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.checkpoints import load_network, load_state, save_network
from distill.cli import main
from distill.methods.losses import fake_score_loss
from distill.methods.registry import METHODS
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.learner import Loss
from distill.training.method import Method
from distill.training.nonfinite import masked_mean, masked_sum, nonfinite_samples, share
from distill.training_config import DistillationConfig

NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), dropout=0.1,
)  # fmt: skip
RECIPE = """
description = "a toy"
[network]
img_resolution = 8
img_channels = 1
label_dim = 2
model_channels = 8
channel_mult = [1]
num_blocks = 1
attn_resolutions = []
[toy]
total_images = 320
batch = 8
microbatch = 4
lr = 6e-3
ema_halflife = 40
checkpoint_every = 400
sigma_init = 2.0
pull = 0.5
"""


class ToyConfig(DistillationConfig):
    """The section [toy].

    Attributes:
        sigma: the one noise level at which it looks.
        pull: the generator's loss is multiplied by this.
    """

    sigma: float = Field(default=0.2, gt=0)
    pull: float = Field(gt=0)


class Toy(Method):
    """The generator copies what the teacher makes of less noise; the fake score learns it."""

    name = "toy"
    section = ToyConfig
    config: ToyConfig

    def fake_score_loss(self, half):
        latents, labels = half.draw_inputs()
        images = half.generate(latents, labels)
        sigma = self._level(half)
        noisy = images + sigma * torch.randn_like(images)
        denoised = half.fake_score(noisy, sigma, labels)
        loss = fake_score_loss(images, denoised, sigma, half.teacher.config.preconditioning)
        return self._reduced("fake_score", loss, denoised)

    def generator_loss(self, half):
        latents, labels = half.draw_inputs()
        images, sigma = half.generate(latents, labels), self._level(half)
        target = half.teacher(sigma * latents, sigma, labels)
        return self._reduced("generator", self.config.pull * (target - images) ** 2, images)

    def _level(self, half):
        return torch.full((1, 1, 1, 1), self.config.sigma, device=half.device)

    def _reduced(self, name, loss, output):
        left_out = nonfinite_samples(loss)
        total = masked_sum(left_out, loss, output) / self.config.batch
        return Loss(total, share(left_out), {f"loss/{name}": masked_mean(left_out, loss)})


@pytest.fixture
def distil(tmp_path, monkeypatch, capsys):
    """`sid-distill run` with a toy recipe and more arguments: its exit code and last words.

    With `whole` all that it said on stderr.
    """
    # It would rule all of this process, and other tests look at memory.
    monkeypatch.setattr("distill.commands.run.keep_freed_memory", lambda: None)
    monkeypatch.setitem(METHODS, "toy", Toy)
    torch.manual_seed(0)
    teacher = Denoiser(NETWORK)
    for weight in teacher.parameters():
        if weight.dim() > 1:  # the last layers begin near 0, and the teacher would draw nothing
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    file, recipe = tmp_path / "teacher.safetensors", tmp_path / "toy.toml"
    save_network(file, teacher, {"role": "teacher", "classes": ["a", "b"]})

    def run(out, *arguments, text=RECIPE, whole=False):
        recipe.write_text(text)
        common = ["--recipe", recipe, "--teacher", file, "--features", "none", "--device", "cpu"]
        command = ["sid-distill", "run", *common, "--out", tmp_path / out, *arguments]
        monkeypatch.setattr("sys.argv", [str(word) for word in command])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        if whole:
            return end.value.code, said.err
        return end.value.code, (said.err if end.value.code else said.out).splitlines()[-1]

    return run


def assert_identical(a, b):
    """Nested dicts and lists of tensors and numbers, to the bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            assert_identical(one, other)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.slow
def test_a_method_of_ones_own_learns_and_its_checkpoints_are_exact(distil, tmp_path, monkeypatch):
    monkeypatch.setattr("distill.training.loop.LOG_EVERY", 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert distil("whole")[0] == 0
    events = EventAccumulator(str(whole)).Reload()
    for name, share_left in (("loss/fake_score", 0.8), ("loss/generator", 0.3)):
        values = [point.value for point in events.Scalars(name)]
        assert len(values) == 20
        assert mean(values[-5:]) < share_left * mean(values[:2]), (name, values)

    assert distil("parts", "--images", 160)[0] == 0
    assert load_state(parts / "state.pt")["images_seen"] == 160
    assert distil("parts")[0] == 0
    assert_identical(load_state(parts / "state.pt"), load_state(whole / "state.pt"))
    _, metadata = load_network(whole / "network.safetensors")
    assert (metadata["method"], metadata["pull"], metadata["sigma_init"]) == ("toy", 0.5, 2.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RECIPE.replace("pull", "pul"), r"unknown entry toy.pul: [toy] may hold "),
        (RECIPE.replace("pull = 0.5", ""), "toy.pull: Field required"),
        (RECIPE.replace("pull = 0.5", "pull = -1"), "toy.pull: Input should be greater than 0"),
        (RECIPE.replace("batch = 8", "batch = 6"), "toy: a batch of 6 is no multiple of"),
        (RECIPE.replace("[toy]", "[tyo]"), "unknown section [tyo]: a recipe may hold description"),
        (RECIPE[: RECIPE.index("[toy]")], "has no section of a method of distillation: add one"),
        (RECIPE + "[sid]\n", "sid.total_images: Field required"),
        (RECIPE + "[sid]\nalfa = 1\n", "unknown entry sid.alfa: [sid] may hold "),
        (
            "licens = 1\n" + RECIPE,
            "unknown entry licens, and no section [licens]: a recipe may hold ",
        ),
        (RECIPE.replace("channel_mult", "channels"), "unknown entry network.channels: [network]"),
    ],
)
def test_a_mistake_in_its_recipe_is_refused_by_name(distil, tmp_path, text, said):
    code, line = distil("out", text=text)
    assert (code, said in line) == (2, True), line
    assert not (tmp_path / "out").exists()


def test_what_is_known_is_named_beside_what_is_not(distil):
    assert ", pull, " in distil("out", text=RECIPE.replace("pull", "pul"))[1]
    assert "methods: sid, " in distil("out", text=RECIPE.replace("[toy]", "[tyo]"))[1]


def test_options_set_the_entries_that_it_has_and_no_others(distil, tmp_path):
    code, line = distil("out", "--alpha", 1.0)
    assert (code, "alpha changes nothing here: what may be set is adam_eps" in line) == (2, True)
    assert not (tmp_path / "out").exists()


def test_a_run_of_one_method_does_not_go_on_by_another(distil, tmp_path):
    assert distil("out", "--images", 8)[0] == 0
    text = RECIPE.replace("[toy]", "[sid]").replace("pull = 0.5", "")
    code, line = distil("out", text=text)
    said = f"{tmp_path / 'out'} holds a run by the method toy, not sid: resume it with its own, "
    assert (code, said in line) == (2, True), line
    code, line = distil("out", "--method", "sid")
    assert (code, said in line) == (2, True), line


SID_SECTION = """
[sid]
total_images = 8
batch = 8
microbatch = 8
alpha = 0.7
ema_halflife = 40
checkpoint_every = 400
sigma_init = 2.0
"""


def test_of_several_sections_the_first_is_meant_and_another_can_be_chosen(distil, tmp_path):
    text = RECIPE + SID_SECTION
    assert distil("first", "--images", 8, text=text)[0] == 0
    code, said = distil("second", "--method", "sid", text=text, whole=True)
    assert (code, "note" in said) == (0, False), said
    settings = json.loads(load_state(tmp_path / "first" / "state.pt")["settings"])
    assert (settings["method"], settings["pull"]) == ("toy", 0.5)
    settings = json.loads(load_state(tmp_path / "second" / "state.pt")["settings"])
    assert (settings["method"], settings["alpha"], settings["microbatch"]) == ("sid", 0.7, 8)
    _, metadata = load_network(tmp_path / "second" / "network.safetensors")
    assert (metadata["method"], metadata["alpha"]) == ("sid", 0.7)


def test_a_method_without_a_section_takes_over_what_it_knows_of_the_first(distil, tmp_path):
    """And says so: nobody is to wonder where its numbers came from."""
    code, said = distil("out", "--method", "sid", "--images", 8, whole=True)
    note = (
        f"note: the recipe {tmp_path / 'toy.toml'} has no section [sid]: it takes total_images, "
        "batch, microbatch, lr, ema_halflife, checkpoint_every and sigma_init from [toy], and has "
        "no use for pull\n"
    )
    assert (code, note in said) == (0, True), said
    settings = json.loads(load_state(tmp_path / "out" / "state.pt")["settings"])
    assert (settings["method"], settings["microbatch"], settings["lr"]) == ("sid", 4, 6e-3)
    assert settings["alpha"] == 1.0  # SiD's own default
    assert distil("out", "--method", "sid", "--images", 16)[0] == 0  # the same command goes on


@pytest.mark.parametrize(
    ("text", "method", "said"),
    [
        (RECIPE, "tyo", "no method 'tyo': choose of sid, "),
        (RECIPE, "", "no method '': choose of sid, "),
        (
            RECIPE[: RECIPE.index("[toy]")] + SID_SECTION,
            "toy",
            "which has no section [toy], by the entries of [sid]: toy.pull: Field required",
        ),
    ],
)
def test_a_method_that_cannot_be_chosen_is_refused_by_name(distil, tmp_path, text, method, said):
    code, line = distil("out", "--method", method, text=text)
    assert (code, said in line) == (2, True), line
    assert not (tmp_path / "out").exists()
