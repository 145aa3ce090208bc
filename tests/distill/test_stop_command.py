"""`run --stop` and what a run measures along the way: chosen, recorded, kept, refused."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from distill.checkpoints import load_network, load_settings, save_network
from distill.cli import main
from distill.commands.options import report
from distill.commands.reference import reference
from distill.commands.stopping import early_end
from distill.data.datasets import load_dataset
from distill.evaluation import evaluate
from distill.evaluation.classifier import save_classifier, train_extractor
from distill.methods.sid import SidConfig
from distill.networks import Denoiser, read_config
from distill.training.distributed import DistributedContext
from distill.training.early_end import EarlyEnd
from tests.distill.tiny_recipe import NETWORK, tiny_recipe

SID = {"sigma_init": 2.5, "total_images": 8, "batch": 8}  # measured once, at its end


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A teacher, a feature extractor that knows its images, and a reference with features."""
    folder = tmp_path_factory.mktemp("stop")
    stream = np.random.RandomState(0)
    for name, shade in (("bright", 150), ("dark", 0)):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(130):
            pixels = (stream.randint(0, 100, (8, 8)) + shade).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{i}.png")
    dataset = load_dataset(folder / "data", resolution=8)
    save_classifier(folder / "shades.safetensors", train_extractor("shades", dataset, None, 1))
    reference(
        folder / "shades.npz", str(folder / "shades.safetensors"), folder / "data", 8,
        keep_features=True, device="cpu",
    )  # fmt: skip
    torch.manual_seed(0)
    network = Denoiser(read_config({"architecture": "ddpmpp", "label_dim": 2, **NETWORK}))
    metadata = {"role": "teacher", "classes": ["bright", "dark"]}
    save_network(folder / "teacher.safetensors", network, metadata)
    return folder


@pytest.fixture
def command(files, tmp_path, monkeypatch, capsys):
    """`sid-distill run` with more arguments: its exit code and last words."""
    # It would rule all of this process, and other tests look at memory.
    monkeypatch.setattr("distill.commands.run.keep_freed_memory", lambda: None)
    monkeypatch.setattr(evaluate, "measure", partial(evaluate.measure, images=300))
    recipe = tmp_path / "tiny.toml"

    def command(*arguments, **sid):
        recipe.write_text(tiny_recipe({"label_dim": 2}, sid=SID | sid))
        common = ["--recipe", recipe, "--teacher", files / "teacher.safetensors", "--device", "cpu"]
        words = ["sid-distill", "run", *common, "--out", tmp_path / "out", *arguments]
        monkeypatch.setattr("sys.argv", [str(word) for word in words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code, (said.err if end.value.code else said.out).splitlines()[-1]

    return command


def kept_gain(out):
    return load_settings(out / "state.pt")["stop_gain"]


def test_a_run_measures_precision_and_recall_and_keeps_its_way_to_end(files, command, tmp_path):
    out = tmp_path / "out"
    measuring = ("--features", files / "shades.safetensors", "--reference", files / "shades.npz")
    said = f"8 images: {out}/network.safetensors; --images ended it, before its trend could"
    assert command(*measuring, "--stop", "auto") == (0, said)
    point = json.loads((out / "curve.jsonl").read_text())
    assert set(point) == {
        "images_seen", "features", "distance", "accuracy", "precision", "recall", "rate_share",
    }  # fmt: skip
    assert (point["rate_share"], 0 <= point["recall"] <= 1) == (1.0, True)
    assert kept_gain(out) == 0.1
    assert load_network(out / "network.safetensors")[1]["stop_gain"] == 0.1

    assert command(*measuring, "--images", 16)[0] == 0
    assert kept_gain(out) == 0.1, "left out, it stays"
    assert command(*measuring, "--images", 24, "--stop", "images")[0] == 0
    assert kept_gain(out) is None
    assert command(*measuring, "--images", 32, stop_gain=0.2)[0] == 0
    assert kept_gain(out) is None, "the recipe is for runs that begin"


@pytest.mark.parametrize(
    ("arguments", "sid"),
    [(("--features", "none", "--stop", "auto"), {}), ((), {"stop_gain": 0.1})],
)
def test_a_run_that_measures_nothing_cannot_end_by_it(arguments, sid, command, tmp_path):
    code, line = command(*arguments, **sid)
    assert (code, line) == (
        2,
        "error: --stop auto looks at the distance along the way, and this run measures none: name "
        "a feature extractor with --features, or say --stop images",
    )
    assert not (tmp_path / "out").exists()


def test_a_curve_that_is_damaged_is_said_before_anything_is_computed(files, command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "curve.jsonl").write_text("nonsense\n")
    code, line = command("--features", files / "shades.safetensors", "--stop", "auto")
    assert (code, "curve.jsonl, line 1, is damaged: remove that line" in line) == (2, True)
    assert not (tmp_path / "out" / "state.pt").exists()


@pytest.mark.parametrize("gain", [0, 1, -0.1])
def test_a_gain_is_a_share(gain, command):
    code, line = command(stop_gain=gain)
    assert (code, "sid.stop_gain: Input should be" in line) == (2, True), line


def test_an_early_end_says_why_in_the_last_line(tmp_path, capsys):
    config = SidConfig(total_images=96, checkpoint_every=96, batch=8, lr=1e-3, stop_gain=0.1)
    cpu = DistributedContext(torch.device("cpu"))
    early = EarlyEnd(lambda _: None, cooldown=16, since=24, why="the distance has flattened")
    report(40, config, tmp_path, cpu, early)
    assert capsys.readouterr().out == (
        f"40 images: {tmp_path}/network.safetensors; it ended early, for the distance has "
        "flattened\n"
    )
    with pytest.raises(typer.Exit):
        report(32, config, tmp_path, cpu, early)
    assert "stopped at 32 images; the same command goes on" in capsys.readouterr().out


def test_the_rule_looks_at_the_file_and_at_nothing_later(tmp_path):
    """A killed run leaves points that its state has not reached; resumed, it decides alike."""
    config = SidConfig(
        total_images=10**6, checkpoint_every=1, lr=1e-3, ema_halflife=700, cooldown=64
    )
    assert early_end(config, tmp_path) is None, "nobody said --stop auto"
    images = [round(500 * 2 ** (i / 2)) for i in range(12)]
    distances = [5.0] * 9 + [1.0] * 3
    lines = [
        json.dumps({"images_seen": n, "distance": d})
        for n, d in zip(images, distances, strict=True)
    ]
    (tmp_path / "curve.jsonl").write_text("\n".join(lines) + "\n")
    early = early_end(config.model_copy(update={"stop_gain": 0.1}), tmp_path)
    assert early.rule(images[6]) is None, "seven points"
    assert early.rule(images[8]).startswith("the distance has flattened: a doubling of the images")
    assert early.rule(images[9]) is None
    assert early.cooldown == 64
