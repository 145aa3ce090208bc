"""A newcomer's way: every block of README, quick start and tutorial runs, in order, as it stands.

Smaller where it would take hours (`SMALLER`), on a free port, and in a copy of the tree. What
cannot run here is marked in the page itself, with the reason.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/quickstart.md", "docs/tutorial.md"]
BLOCK = re.compile(
    r"^(?:<!-- not run in the tests: (?P<why>.+?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
SERVER = re.compile(r"make run|sid serve")
SMALLER = [
    (r"total_images = [\d_]+", "total_images = 64"),
    (r"cooldown = [\d_]+", "cooldown = 32"),
    (r"checkpoint_every = [\d_]+", "checkpoint_every = 64"),
    (r"img_resolution = \d+", "img_resolution = 8"),
    (r"channel_mult = .*", "channel_mult = [1, 2]"),
    (r"attn_resolutions = .*", "attn_resolutions = [4]"),
    (r"--resolution 32", "--resolution 8"),
    (r"model_channels = \d+", "model_channels = 8"),
    (r"batch = \d+", "batch = 16"),
    (r"label_dim = \d+", "label_dim = 2"),
    (r"(sid-distill evaluate .*)", r"\1 --images 256"),
    (r"(sid-distill features .*)", r"\1 --epochs 1"),
    (r"(sid-distill analyze .*)", r"\1 --images 16"),
    (r"--seeds 0-99+", "--seeds 0-9"),
    (r"range\(100\)", "range(10)"),
    (r"-c 1 -c 16 -c 64", "-c 4 --warmup 0.1 --duration 0.5"),
    # Where curl says nothing, an error would go unseen.
    (r"\bcurl ", "curl -sSf "),
    # It is installed already; from here it would put a copy in the place of the tree.
    (r"\.venv/bin/pip install .*", ".venv/bin/python -c 'import openvino'"),
    # With httpx from here, for there may be no index to ask.
    (r"python3 -m venv ", ".venv/bin/python -m tests.fresh_venv "),
    (r"app/bin/pip install ", "app/bin/pip install --no-index "),
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the repository, as a newcomer has it after `make setup-dev`."""
    unwanted = shutil.ignore_patterns(".*", "runs", "*.egg-info", "__pycache__", "node_modules")
    tree = tmp_path / "sid-serve"
    shutil.copytree(ROOT, tree, ignore=unwanted)
    (tree / ".venv").symlink_to(ROOT / ".venv")
    # Older than what is installed: make would install this copy into the tree's own environment.
    os.utime(tree / "pyproject.toml", (0, 0))
    draw = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(150):
            pixels = draw.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    shutil.make_archive(str(tree / "photos"), "zip", tmp_path / "photos")
    # Images of no classes lie in one folder.
    shutil.make_archive(str(tree / "portraits"), "zip", tmp_path / "photos" / "cats")
    return tree


class Shell:
    """Runs commands one after the other; a server runs until the next one starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        self.server: subprocess.Popen[str] | None = None
        kept = {name: it for name, it in os.environ.items() if not name.startswith("SID_")}
        self.environment = {**kept, "SID_PORT": self.port, "OMP_NUM_THREADS": "1"}

    def run(self, command: str) -> None:
        command = command.replace("8000", self.port)
        if SERVER.search(command):
            self._serve(re.sub(r"(make run\S*)", rf"\1 PORT={self.port}", command))
            return
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=240,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"

    def _serve(self, command: str) -> None:
        self.close()
        log = self.folder / "server.log"
        with log.open("w") as output:
            self.server = subprocess.Popen(
                ["bash", "-c", command],
                cwd=self.folder,
                env=self.environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        for line in self.server.stdout:
            if "SiD Serve is ready on" in line:
                return
        raise AssertionError(f"{command}\n{log.read_text()[-3000:]}")

    def close(self) -> None:
        if self.server is not None:
            os.killpg(self.server.pid, signal.SIGTERM)
            self.server.communicate(timeout=30)
            self.server = None


@pytest.fixture
def shell(tree: Path) -> Iterator[Shell]:
    shell = Shell(tree)
    yield shell
    shell.close()


def blocks(page: str) -> list[re.Match[str]]:
    return list(BLOCK.finditer((ROOT / page).read_text()))


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_of_a_kind_that_is_run(page):
    text = (ROOT / page).read_text()
    assert len(blocks(page)) * 2 == len(re.findall(r"^```", text, re.MULTILINE))
    assert {block["kind"] for block in blocks(page)} <= {"bash", "python", "toml"}
    # An indented block would be shown as code and pass this test by.
    assert not re.search(r"\n\n {4}\S", BLOCK.sub("", text))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [*PAGES[:2], pytest.param(PAGES[2], marks=pytest.mark.long)])
def test_every_block_runs(page, shell):
    for block in blocks(page):
        if block["why"]:
            continue
        text = block["text"].replace("\\\n", " ")
        for pattern, smaller in SMALLER:
            text = re.sub(pattern, smaller, text)
        if block["kind"] == "toml":
            (shell.folder / "mine.toml").write_text(text)
        elif block["kind"] == "python":
            program = shell.folder / "program.py"
            program.write_text(text.replace("8000", shell.port))
            shell.run("../app/bin/python program.py")
        else:
            for command in text.splitlines():
                shell.run(command)
    # What the page says is written is there, and is what its name says.
    text = (ROOT / page).read_text()
    for name in re.findall(r"-o (\w+\.(?:png|webp|zip|onnx))\b", text):
        assert (shell.folder / name).stat().st_size > 0, name
        if name.endswith((".png", ".webp")):
            Image.open(shell.folder / name).load()
