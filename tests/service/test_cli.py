"""The command `sid` as a person meets it: its output and its exit status."""

import logging
import re
import sys
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from service import cli
from service.bundle import load_bundle
from tests.bundles import write_bundle


class Done(NamedTuple):
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def sid(tmp_path, monkeypatch, capsys):
    """Run `sid` with arguments, in a folder that holds models/ if the test asked for it."""
    monkeypatch.chdir(tmp_path)
    # `sid serve` sets logging up for the whole process, which is pytest's here.
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["sid", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return Done(end.value.code or 0, out, err)

    return run


def assert_user_error(done: Done, says: str) -> None:
    assert done.status == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert says in done.stderr


def test_it_draws_the_golden_image_and_says_what_it_drew(sid, models, tmp_path):
    done = sid("generate", "--class-label", "dress", "--seed", 7, "-o", "dress.png")
    bundle = load_bundle(models / "tiny")
    assert done == (0, f"dress.png: Dress (class 2), seed 7, model {bundle.tag}:float32\n", "")
    drawn = np.asarray(Image.open(tmp_path / "dress.png"))
    assert np.array_equal(drawn, bundle.manifest.golden.images[0].pixels()[:, :, 0])


def test_an_index_is_a_class_too_and_the_environment_names_the_folder(
    sid, models, tmp_path, monkeypatch
):
    models.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("SID_MODELS", "elsewhere")
    done = sid("generate", "--class-label", "2", "--seed", 7)
    assert done.stdout.startswith("picture.png: Dress (class 2), seed 7, ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--class-label", "3"], "0 to 2 (T-shirt/top, Trouser, Dress)"),
        (["--class-label", "Coat"], "0 to 2 (T-shirt/top, Trouser, Dress)"),
        (["--seed", "-1"], "0 to 18446744073709551615"),
        (["--seed", str(2**64)], "0 to 18446744073709551615"),
        (["--model", "nope"], "there is tiny"),
        (["--models", "nowhere"], "nowhere: there is no such folder"),
        (["-o", "dress.gif"], "dress.gif: the name must end in .png, .webp, .jpg, .jpeg"),
        (["-o", "no/such/dress.png"], "no/such: there is no such folder"),
    ],
)
def test_a_mistake_is_one_line(sid, models, arguments, says):
    assert models.is_dir()
    assert_user_error(sid("generate", *arguments), says)


def test_an_image_that_cannot_be_written_is_one_line(sid, models):
    (models / "folder.png").mkdir()
    assert_user_error(sid("generate", "-o", models / "folder.png"), "folder.png: Is a directory")


@pytest.mark.parametrize("command", ["generate", "serve"])
def test_a_damaged_model_is_refused_by_name(sid, models, command):
    graph = models / "tiny" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:100])
    arguments = ["--port", 0] if command == "serve" else []
    says = "models/tiny/1/model.onnx: not the file that was published"
    assert_user_error(sid(command, *arguments), says)


def test_a_bad_setting_is_named(sid, monkeypatch):
    monkeypatch.setenv("SID_QUEUE_SIZE", "many")
    assert_user_error(sid("serve"), "SID_QUEUE_SIZE: ")


@pytest.mark.parametrize(
    ("engine", "precision", "says"),
    [
        ("tensorrt", "float32", "SID_ENGINE: Input should be 'auto', 'onnxruntime',"),
        ("triton", "float32", "SID_ENGINE=triton needs SID_TRITON"),
        ("openvino", "float16", "tiny: openvino cannot compute it in float16; of what the bundle"),
        ("openvino", "int8", "SID_PRECISION: int8 is served no more"),
        ("cuda", "float32", "model.onnx: the ONNX Runtime that is installed has no CUDA"),
    ],
)
@pytest.mark.usefixtures("models")
def test_an_engine_that_cannot_be_is_one_line(sid, monkeypatch, engine, precision, says):
    monkeypatch.setenv("SID_ENGINE", engine)
    monkeypatch.setenv("SID_PRECISION", precision)
    assert_user_error(sid("generate"), says)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize("engine", ["openvino", "auto"])
def test_other_engines_draw_too(sid, monkeypatch, engine):
    monkeypatch.setenv("SID_ENGINE", engine)
    done = sid("generate", "--seed", 7)
    assert (done.status, done.stdout.startswith("picture.png: ")) == (0, True)


def test_the_catalogue_is_a_table(sid, models):
    write_bundle(models, "plain", classes=[], steps=4)
    done = sid("models")
    assert done.status == 0
    assert re.search(r"plain +1 +8x8x1 +4 ", done.stdout)
    for word in ("name", "steps", "plain", "tiny", "8x8x1", "Dress", "Apache-2.0"):
        assert word in done.stdout


@pytest.mark.parametrize("command", ["serve", "generate", "models", "verify"])
def test_help_explains_every_option(sid, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = sid(command, "--help")
    assert done.status == 0
    options = [line for line in done.stdout.splitlines() if " --" in line]
    assert options
    for line in options:
        assert len(line.strip("│| ").split("  ")[-1].split()) >= 2, line
