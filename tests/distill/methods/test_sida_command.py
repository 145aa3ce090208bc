"""`sid-distill run` with real images: SiD2A from files, and every input that does not suit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from distill.checkpoints import load_network, load_state, save_network
from distill.cli import main
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from tests.distill.tiny_recipe import NETWORK, tiny_recipe

SIDA = {"total_images": 16, "batch": 8, "frozen_images": 4, "sid_images": 0, "alpha": 1.2}

FACTS = {"role": "teacher", "licence": "Apache-2.0", "data": "others, 60000 images"}


def network(seed, **changes):
    torch.manual_seed(seed)
    made = Denoiser(EdmConfig(**NETWORK | {"label_dim": 2, "dropout": 0.0} | changes))
    for weight in made.parameters():
        if weight.dim() > 1:  # the last layers begin near 0, and it would draw nothing
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return made


def save_images(folder, classes=("a", "b"), mode="L"):
    """Some noise a class."""
    noise = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(3):
            shape = (8, 8) if mode == "L" else (8, 8, 3)
            pixels = noise.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def distil(tmp_path, monkeypatch, capsys):
    """`sid-distill run` of a teacher of classes a and b: its exit code and last words."""
    # It would rule all of this process, and other tests look at memory.
    monkeypatch.setattr("distill.commands.run.keep_freed_memory", lambda: None)
    teacher, recipe = tmp_path / "teacher.safetensors", tmp_path / "tiny.toml"

    def run(*arguments, classes=("a", "b"), **sections):
        save_network(teacher, network(0), FACTS | {"classes": list(classes)})
        recipe.write_text(tiny_recipe({"label_dim": 2}, **sections or {"sida": SIDA}))
        common = ["--recipe", recipe, "--teacher", teacher, "--features", "none", "--device", "cpu"]
        command = ["sid-distill", "run", *common, "--out", tmp_path / "out", *arguments]
        monkeypatch.setattr("sys.argv", [str(word) for word in command])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        lines = (said.err if end.value.code else said.out).splitlines()
        return end.value.code, lines[-1]

    return run


@pytest.mark.slow
def test_a_finished_generator_goes_on_with_real_images(distil, tmp_path):
    """Theta and its average start from the file, psi from the teacher; classes may be numbers."""
    generator = tmp_path / "generator.safetensors"
    metadata = {"role": "generator", "classes": ["0", "1"], "sigma_init": 3.5, "method": "sid"}
    save_network(generator, network(1), metadata)
    data = save_images(tmp_path / "images")
    run = ("--generator", generator, "--data", data)
    code, said = distil(*run, "--images", 8, classes=("0", "1"))
    assert code == 0, said
    start = network(1).state_dict()
    state = load_state(tmp_path / "out" / "state.pt")
    for name in ("generator", "ema"):
        assert all(torch.equal(w, start[key]) for key, w in state["training"][name].items()), name
    teacher = network(0).state_dict()
    apart = [(w - teacher[key]).abs().max() for key, w in state["training"]["fake_score"].items()]
    assert 0 < max(apart) < 3e-3, "one step from the teacher"
    settings = json.loads(state["settings"])
    assert (settings["sigma_init"], settings["alpha"], settings["method"]) == (3.5, 1.2, "sida")

    code, said = distil(*run, classes=("0", "1"))
    assert code == 0, said
    drawn, metadata = load_network(tmp_path / "out" / "network.safetensors")
    assert not torch.equal(next(drawn.parameters()), next(iter(start.values())))
    assert metadata["data"] == "images, 6 images"
    assert metadata.get("licence") is None, "nobody has spoken for these images"
    assert metadata["sigma_init"] == 3.5
    assert json.loads((tmp_path / "out" / "run.json").read_text())["data"] == str(data)

    save_images(tmp_path / "others" / "images", classes=("b", "c"))
    code, said = distil("--generator", generator, "--data", tmp_path / "others", classes=("0", "1"))
    assert (code, "another data: resume it with its own" in said) == (2, True), said


@pytest.mark.parametrize(
    ("classes", "mode", "said"),
    [
        (("a", "c"), "L", "are of the classes a, c, the teacher of a, b: sida needs images of its"),
        (("a", "b", "c"), "L", "have 3 classes, the teacher 2: sida needs images of its classes"),
        (("a", "b"), "RGB", "8x8 pixels and 3 channels, those of the teacher 8x8 pixels and 1 ch"),
    ],
)
def test_images_unlike_the_teachers_are_refused(distil, tmp_path, classes, mode, said):
    code, line = distil("--data", save_images(tmp_path / "images", classes, mode))
    assert (code, said in line) == (2, True), line
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_there_or_not_wanted_are_refused(distil, tmp_path):
    code, line = distil("--data", tmp_path / "nowhere")
    assert (code, "no data set at" in line) == (2, True), line
    data = save_images(tmp_path / "images")
    code, line = distil("--data", data, sid={"total_images": 8, "batch": 8})
    assert code == 2
    assert line == "error: --data changes nothing here: sid learns from its teacher alone"
    off = SIDA | {"discriminator_weight": 0, "adversarial_weight": 0}
    code, line = distil("--data", data, sida=off)
    assert (code, "--data changes nothing here: sida" in line) == (2, True), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"logit_clip": 0}, "sida.logit_clip: Input should be greater than 0"),
        ({"frozen_images": -1}, "sida.frozen_images: Input should be greater than or equal to 0"),
        ({"mean_over": "batch"}, "sida.mean_over: Input should be 'microbatch' or 'sample'"),
        ({"discriminator": 1}, "unknown entry sida.discriminator: [sida] may hold"),
    ],
)
def test_a_mistake_in_the_section_is_refused_by_name(distil, entry, said):
    code, line = distil(sida=SIDA | entry)
    assert (code, said in line) == (2, True), line
