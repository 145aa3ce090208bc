"""'--compile on' by the installed command, and what it says where there is no compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill.checkpoints import load_network
from tests.distill.tiny_recipe import tiny_recipe

BIN = Path(sys.executable).parent
RECIPE = tiny_recipe(
    {"dropout": 0.2},
    teacher={
        "total_images": 24,
        "batch": 8,
        "warmup": 8,
        "ema_halflife": 8,
        "checkpoint_every": 24,
    },
    sid={"total_images": 8, "lr": 1e-4, "ema_halflife": 8, "checkpoint_every": 8},
)


@pytest.fixture
def teacher(tmp_path):
    """Train a teacher with an option, in a process with a compiler cache of its own."""
    (tmp_path / "images" / "gray").mkdir(parents=True)
    for i in range(4):
        Image.new("L", (8, 8), 60 + 40 * i).save(tmp_path / "images" / "gray" / f"{i}.png")
    (tmp_path / "tiny.toml").write_text(RECIPE)

    def train(out, choice, **environment):
        command = ["teacher", "--recipe", "tiny.toml", "--data", "images", "--device", "cpu"]
        return subprocess.run(
            [BIN / "sid-distill", *command, "--out", out, "--compile", choice],
            cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
            | environment,
        )  # fmt: skip

    return train


@pytest.mark.long
def test_a_compiled_teacher_is_the_eager_one_and_either_resumes_the_other(teacher, tmp_path):
    compiled, eager = teacher("compiled", "on"), teacher("eager", "off")
    assert compiled.returncode == eager.returncode == 0, compiled.stderr + eager.stderr
    assert "network form: compiled (" in compiled.stdout
    assert "network form" not in eager.stdout, "a CPU has no choice to make"
    one, other = (
        load_network(tmp_path / name / "network.safetensors")[0].state_dict()
        for name in ("compiled", "eager")
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    resumed = teacher("compiled", "off")
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.slow
def test_without_a_compiler_asking_to_compile_is_one_line(teacher, tmp_path):
    refused = teacher("refused", "on", CXX="/no/such/compiler")
    assert refused.returncode == 2
    told = refused.stderr.splitlines()
    errors = [line for line in told if line.startswith("error: ")]
    assert len(errors) == 1, refused.stderr
    assert errors[0].startswith("error: --compile on cannot be here (")
    assert "/no/such/compiler" in errors[0]
    assert "Traceback" not in refused.stderr
    assert told[-1] == errors[0]
    assert not (tmp_path / "refused").exists()
