"""docs/results.md, its pages and docs/methods.md: commands run, figures stand on their pages.

Every command in a code block of these pages is run as it stands, but at toy size (`TOY`): small
networks, few images, fractions of a second of load. What cannot run here is marked in the page
itself, with the reason, as in the pages of test_walkthrough.py. A command that is changed or added
is therefore run, or its page says why not.
"""

import ast
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.deploy.nginx import NGINX
from tests.distill.data.test_data import write_idx
from tests.service.triton import free_ports
from tests.test_walkthrough import BLOCK

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "results.md"
COMPARE = ROOT / "tests" / "compare"
PAGES = [
    *sorted((ROOT / "docs" / "results").glob("*.md")),
    ROOT / "docs" / "notebook.md",
    ROOT / "docs" / "methods.md",
    COMPARE / "README.md",
]
# Each pattern makes a command smaller and leaves it the command that it is.
TOY = [
    # Data: few avatars, and a folder that stands in for Debian's Fashion-MNIST.
    (r"(sid-distill avatars .*?)(\s#.*)?$", r"\1 --count 26"),  # a covariance needs 256 images
    (r"(sid-distill (?:features|teacher|reference)(?!.* --data ).*)", r"\1 --data runs/fashion"),
    # A light decoder that has learned nothing is refused: tests/distill/test_light_decoder.py.
    (r"sid-distill decoder .*", "sid-distill decoder --help"),
    (r"sid-distill publish .*light.*", "sid-distill publish --help"),
    (r"(sid-distill autoencoder .*?)--images \d+", r"\1--images 32"),
    (r"sid-distill publish (?!.*--licence)(?!--help)", "sid-distill publish --licence MIT "),
    # The shipped feature extractors stay, for they are what the pages measure with.
    (r"--out distill/evaluation/assets/", "--out runs/"),
    # Networks: the recipes of the tree are made small, below.
    (r"--epochs \d+|(?<=sid-distill features )(?!.*--epochs)", "--epochs 1 "),
    (r"(sid-distill (?:teacher|run|regress) .*?)(--images \d+)(.*)", r"\1\3"),
    (r"(sid-distill (?:teacher|run|regress) .*)", r"\1 --images 32"),
    (r"(sid-distill run (?!.*--features))", r"\1--features none "),
    # A second, smaller run of the same command is the same at this size.
    (r"(sid-distill regress .*?) --pairs \d+( .*?)runs/avatars-check", r"\1\2runs/avatars-start"),
    (r"\.venv/bin/torchrun .*? --no-python ", ""),  # on two processes: tests/distill/training
    (r"for a in [\d. ]+;", "for a in 1.2;"),
    (r"runs/avatars-sid/snapshots/\S+", "runs/avatars-sid/network.safetensors"),
    # Measuring.
    (r"(sid-distill evaluate .*?)(--images \d+|$)", r"\1 --images 256 "),
    (r"(evaluate \S*teacher\S* .*?)(--steps \d+|$)", r"\1 --steps 2 "),
    (r"(sid-distill analyze (?!docs/).*?)(--images \d+|$)", r"\1 --images 4 --pictures 0 "),
    (r"\.venv/bin/python -m pytest ", "test -f "),  # the suite runs it
    # Building a plan takes as long at any size, and tests/distill/export does it.
    (r"sid-distill export .* --engine tensorrt-rtx .*", "sid-distill export --help"),
    (r"make soak", "make -n soak"),  # the suite runs it for eight seconds
    # All of it at toy size: tests/gpu. There is no stamp of setup-dev here, and nothing to set up.
    (r"make gpu", "make --old-file=setup-dev gpu TOY=1 ONLY=ceilings"),
    # Load: one server of the comparison, for those of others are not installed.
    (r"--seeds 0-4999", "--seeds 0-9"),
    (r"(sid bench .*?)(--duration \d+|$)", r"\1 --warmup 0.1 --duration 0.2 "),
    (r"-c 1 -c 16 -c 64|-c 64", "-c 4"),
    (r"taskset -c \d ", ""),
    (r"compare\.py .*?(?=--out|$)", "compare.py --servers ours --rounds 1 --duration 0.3 --warmup "
     "0.1 --settle 0 --connections 2 --bare-slice 0 --port PORT "),
    (r"(bare_onnx\.py)", r"\1 --slice 0.01 --repeats 1"),
    (r"over_triton\.py.*", "over_triton.py --rounds 1 --duration 0.3 --warmup 0.1 --connections 1"),
    (r"compare\.engines .*", "compare.engines tiny --batches 1 --rounds 1 --seconds 0.01"),
    (r"nginx_cache\.py .*", "nginx_cache.py --rounds 1 --seconds 0.3 --skews 1 --connections 4"),
    (r"plan_replay\.py .*", "plan_replay.py --rounds 1 --loads 0.3 1.2 --warmup 0.1 --seconds 0.5 "
     "--cell 0.02"),
    (r"processor_time\.py .*", "processor_time.py --rounds 1 --warmup 0.1 --duration 0.5"),
    (r"overload\.py .*", "overload.py --rounds 1 --warmup 0.1 --duration 0.5 --times 1"),
    (r"--curve docs/\S+", "--curve runs/curve.json"),
    # An older checkout is not at hand: this one takes both places.
    (r"git worktree add .*", "true"),
    (r"two_gateways\.py .*", "two_gateways.py . . --rounds 1 --seconds 0.2"),
    # One row beside the teacher: each further one takes as long again.
    (r"compare\.methods .*", "compare.methods --data runs/fashion --rows dmd --images 32 --seeds 0 "
     "--evaluate-images 256"),
    (r"compare\.latent_sizes.*", "compare.latent_sizes --size tiny --rounds 1"),
    (r"compare\.steps_cost .*", r"\g<0> --rounds 1 --batches 1"),
    (r"training_speed\.py --network.*", "training_speed.py --batch 2 --rounds 1 --steps 1"),
    (r"waiting\.py.*", "waiting.py --beside 1 --ways PASSIVE --rounds 1 --seconds 0 --batch 2"),
    (r"(compare\.reconstruction .*)", r"\1 --images 100"),
    (r"(colour_spread\.py)", r"\1 --images-per-class 2"),
    (r"halved_colours\.py(.*)--images \d+", r"halved_colours.py\1--images 100"),
]  # fmt: skip
RECIPE = [
    (r"(total_images|checkpoint_every) = [\d_]+", r"\1 = 32"),
    (r"(cooldown|warmup) = [\d_]+", r"\1 = 16"),
    (r"(batch) = \d+", r"\1 = 32"),
    (r"pairs = [\d_]+", "pairs = 32"),
    (r"precision = .*\n", ""),
    (r"model_channels = \d+", "model_channels = 8"),
    (r"channel_mult = .*", "channel_mult = [1, 2]"),
    (r"attn_resolutions = .*", "attn_resolutions = []"),
]
# Made before the pages that use sid-distill, by commands of the pages: small networks in the place
# of the shipped ones.
MADE_FIRST = """
.venv/bin/sid-distill avatars --out runs/avatars.zip
.venv/bin/sid-distill avatars --test --out runs/avatars-test.zip
.venv/bin/sid-distill teacher --recipe fashion --out runs/fashion-teacher
cp runs/fashion-teacher/network.safetensors distill/pretrained/fashion-teacher.safetensors
.venv/bin/sid-distill run --recipe fashion --teacher runs/fashion-teacher/network.safetensors --out runs/fashion-sid
cp runs/fashion-sid/network.safetensors distill/pretrained/fashion-generator.safetensors
.venv/bin/sid-distill evaluate distill/pretrained/fashion-teacher.safetensors
.venv/bin/sid-distill evaluate distill/pretrained/fashion-generator.safetensors
.venv/bin/torchrun --nproc-per-node 2 --no-python .venv/bin/sid-distill teacher --recipe avatars --data runs/avatars.zip --out runs/avatars-teacher
cp runs/avatars-teacher/network.safetensors distill/pretrained/avatars-teacher.safetensors
.venv/bin/torchrun --nproc-per-node 2 --no-python .venv/bin/sid-distill regress --recipe avatars --teacher distill/pretrained/avatars-teacher.safetensors --out runs/avatars-start
.venv/bin/torchrun --nproc-per-node 2 --no-python .venv/bin/sid-distill run --recipe avatars --features none --teacher distill/pretrained/avatars-teacher.safetensors --generator runs/avatars-start/network.safetensors --out runs/avatars-sid
.venv/bin/sid-distill reference --features avatars-cnn --data runs/avatars-test.zip --resolution 64 --keep-features --out runs/held-out.npz
"""  # noqa: E501


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def lines_of(text: str) -> list[str]:
    """The commands of a block, each on one line, with single spaces."""
    joined = text.replace("\\\n", " ")
    return [re.sub(r" +", " ", line).strip() for line in joined.splitlines() if line.strip()]


def blocks(page: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text()))


class Shell:
    """Runs commands in a small copy of the repository; each distinct one once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[str] = set()
        kept = {name: it for name, it in os.environ.items() if not name.startswith("SID_")}
        self.environment = {**kept, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}

    def run_block(self, text: str) -> None:
        """Line by line; a block with a server or a loop in it as one."""
        lines = [smaller(line) for line in lines_of(text)]
        if re.search(r"sid serve|^for ", text, re.MULTILINE):
            self.run("\n".join(lines))
        else:
            for line in lines:
                self.run(line)

    def run(self, script: str) -> None:
        if script in self.done:
            return
        (port,) = free_ports(1)
        text = re.sub(r"\b(8000|8765|8791|PORT)\b", str(port), script)
        if "sid serve" in text:
            text = f"export SID_PORT={port}\n{text}"
        log = self.folder / "output.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-ec", text],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                process.wait(timeout=300)
            finally:
                end_group(process.pid)
        assert process.returncode == 0, f"{text}\n{log.read_text()[-3000:]}"
        self.done.add(script)


def end_group(group: int) -> None:
    """End what a block has left running, and wait until it is gone; in the end, kill it."""
    with contextlib.suppress(ProcessLookupError):  # it is gone
        os.killpg(group, signal.SIGTERM)
        patience = time.monotonic() + 30
        while time.monotonic() < patience:
            os.killpg(group, 0)
            time.sleep(0.02)
        os.killpg(group, signal.SIGKILL)


def smaller(line: str) -> str:
    for pattern, toy in TOY:
        line = re.sub(pattern, toy, line)
    return re.sub(r" +", " ", line).strip()


@pytest.fixture(scope="module")
def shell(tmp_path_factory) -> Shell:
    tree = tmp_path_factory.mktemp("results") / "sid-serve"
    unwanted = shutil.ignore_patterns(".*", "runs", "*.egg-info", "__pycache__", "node_modules")
    shutil.copytree(ROOT, tree, ignore=unwanted)
    (tree / ".venv").symlink_to(sys.prefix)
    for name in ("fashion", "avatars", "avatars-latents"):
        recipe = tree / "distill" / "recipes" / f"{name}.toml"
        text = recipe.read_text()
        for pattern, toy in RECIPE:
            text = re.sub(pattern, toy, text)
        recipe.write_text(text)
    data = tree / "runs" / "fashion"
    data.mkdir(parents=True)
    random = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        write_idx(
            data / f"{prefix}-images-idx3-ubyte.gz", random.integers(0, 256, (260, 28, 28), "u1")
        )
        write_idx(data / f"{prefix}-labels-idx1-ubyte.gz", np.arange(260, dtype="u1") % 10)
    return Shell(tree)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_runs(page, shell):
    if "nginx_cache.py" in page.read_text() and NGINX is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    if "sid-distill" in page.read_text():
        shell.run_block(MADE_FIRST)
    for block in blocks(page):
        if not block["why"]:
            shell.run_block(block["text"])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_each_block_is_of_a_kind_that_is_run(page):
    text = page.read_text()
    assert len(blocks(page)) * 2 == len(re.findall(r"^```", text, re.MULTILINE))
    assert {block["kind"] for block in blocks(page)} <= {"bash"}
    # An indented block would be shown as code and pass these tests by.
    assert not re.search(r"\n\n {4}\S", BLOCK.sub("", text))


def rows() -> list[list[str]]:
    """The cells of each row of the table."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| [")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_table_has_a_cell_for_each_column():
    assert len(rows()) > 30
    for row in rows():
        assert len(row) == 7, row
        assert re.match(r"(\*\*missed\*\*|met|-)", row[3]), row


@pytest.mark.parametrize("row", rows(), ids=lambda row: re.sub(r"\]\(.*?\)", "]", row[0]))
def test_each_row_says_what_its_page_says(row):
    claim, _, figure, _, command, _, date = row
    page = ROOT / "docs" / re.search(r"\]\(([^)#]+)", claim)[1]
    text = page.read_text()
    assert date == "-" or date in text
    for number in re.findall(r"\d[\d.,]*\d|\d", re.sub(r"[Ff]loat\d+|p\d\d|int8", "", figure)):
        assert re.search(rf"(?<![\d.,]){re.escape(number)}(?![\d]|[.,]\d)", text), number
    if command.startswith("`"):
        commands = [line for block in blocks(page) for line in lines_of(block["text"])]
        asked = command.strip("`")
        by_hand = f"`{asked}`" in text  # of a process that is watched
        assert by_hand or any(asked in line for line in commands), asked
    else:
        assert command.startswith("none"), command


def test_every_program_of_the_comparison_is_among_the_commands():
    """Those of tests/compare that are started by hand."""
    text = "\n".join(page.read_text() for page in PAGES)
    programs = [path for path in COMPARE.glob("*.py") if "ArgumentParser(" in path.read_text()]
    assert len(programs) >= 7
    for path in programs:
        assert f"tests/compare/{path.name}" in text or f"tests.compare.{path.stem}" in text


@pytest.mark.parametrize("app", ["litserve_app.py", "bentoml_app.py", "ray_app.py"])
def test_the_servers_that_are_not_installed_ask_only_for_what_is_there(app):
    """They cannot start here; each name that they take from compare_work is one that it has."""
    spec = importlib.util.spec_from_file_location("compare_work", COMPARE / "compare_work.py")
    work = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(work)
    tree = ast.parse((COMPARE / app).read_text())
    asked = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "work"
    }
    assert asked
    for name in asked:
        assert hasattr(work, name), name
