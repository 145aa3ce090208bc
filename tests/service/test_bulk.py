"""`sid generate`, many images and by a server: what it draws, how it stops and goes on."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data.datasets import load_dataset
from service.bulk.class_folders import class_folders
from service.bulk.errors import BulkError
from service.bulk.output import Folder, open_output
from service.bulk.plan import Plan, count_seeds, parse_seeds
from service.bulk.window import Window
from service.bundle import SEED_MAX
from service.client import AsyncClient
from service.http.security import new_key
from tests.before_exec import before_exec
from tests.bundles import served_tag, write_bundle
from tests.service import test_cli
from tests.service.test_process import serving

FOLDERS = ("T-shirt_top", "Trouser", "Dress")  # of T-shirt/top, Trouser and Dress
SHIPPED = Path(__file__).parents[2] / "models"
sid, assert_user_error = test_cli.sid, test_cli.assert_user_error


class Server(NamedTuple):
    """A real server of models that nobody changes."""

    models: Path
    url: str


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """It serves `tiny`, of three classes, and takes five images a request."""
    folder = tmp_path_factory.mktemp("bulk")
    write_bundle(folder / "models")
    with serving(folder / "models", log=folder / "log", SID_MAX_IMAGES="5") as (_, url):
        yield Server(folder / "models", url)


@pytest.fixture(params=["here", "server"])
def place(request, server) -> list[str]:
    """The options that say what draws: this process, or a server."""
    if request.param == "here":
        return ["--models", str(server.models)]
    return ["--url", server.url]


def start(*arguments: object, first: str = "", **options) -> subprocess.Popen:
    """`sid generate`, whose process runs the statements of `first` before."""
    return subprocess.Popen(
        before_exec(first, sys.executable, "-m", "service.cli", "generate", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def wait_for_files(folder: Path, process: subprocess.Popen, count: int = 40) -> None:
    """Return once a run has written some images."""
    while sum(1 for _ in folder.rglob("seed*")) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


# What is drawn


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("7", [(7, 7)]),
        ("0-9,20", [(0, 9), (20, 20)]),
        ("20, 5-9,0-5,10", [(0, 10), (20, 20)]),
        (f"0-{SEED_MAX}", [(0, SEED_MAX)]),
    ],
)
def test_seeds_are_read_in_order_and_without_doubles(text, spans):
    seeds = parse_seeds(text)
    assert seeds == tuple(range(first, last + 1) for first, last in spans)
    assert count_seeds(seeds) == sum(last - first + 1 for first, last in spans)


@pytest.mark.parametrize("text", ["", "a", "-1", "9-3", "1-2-3", "1;2", "0-", f"0-{SEED_MAX + 1}"])
def test_what_are_no_seeds_is_said(text):
    with pytest.raises(BulkError, match=r"^--seeds "):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("options", "images", "priority"),
    [
        (["--seeds", "0-2", "--form", "webp", "-o", "out"], 3, "bulk"),
        (["--seeds", "0-6", "--priority", "background", "-o", "out"], 7, "background"),
        (["--priority", "bulk"], 1, "bulk"),
        ([], 1, "interactive"),
    ],
)
def test_a_server_is_asked_for_many_as_bulk(sid, server, options, images, priority):
    def drawn() -> float:
        name = rf'sid_image_seconds_count\{{model="tiny",priority="{priority}"\}} (\S+)'
        return float(re.search(name, httpx.get(f"{server.url}/metrics").text)[1])

    before = drawn()
    assert sid("generate", *options, "--url", server.url).status == 0
    assert drawn() == before + images


@pytest.mark.parametrize("many", [[], ["--seeds", "0-2", "-o", "out"]])
def test_a_priority_that_makes_no_sense_is_said(sid, server, many):
    for place, priority, says in (
        (["--models", server.models], "bulk", "--priority is for a server (--url)"),
        (["--url", server.url], "soon", "interactive, bulk, background, not 'soon'"),
    ):
        done = sid("generate", *many, *place, "--priority", priority)
        assert_user_error(done, says)


@given(
    spans=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=3),
    labels=st.sampled_from([(None,), (1,), (0, 1, 2)]),
    done=st.sets(st.tuples(st.sampled_from([None, 0, 1, 2]), st.integers(0, 80))),
    size=st.integers(1, 20),
)
def test_pieces_hold_each_missing_image_once(spans, labels, done, size):
    seeds = parse_seeds(",".join(f"{first}-{first + more}" for first, more in spans))
    plan = Plan("m:1:d", "abc", labels, seeds, "png")
    there = {plan.name(label, seed) for label, seed in done}
    pieces = list(plan.pieces(there, size))
    names = [name for piece in pieces for name in plan.names(piece)]
    wanted = [plan.name(label, seed) for label in labels for part in seeds for seed in part]
    assert names == [name for name in wanted if name not in there]
    assert all(1 <= piece.count <= size for piece in pieces)
    assert len(wanted) == plan.count


def test_names_sort_as_numbers_do():
    plan = Plan("m:1:d", ["a/b"] * 120, (0, 3, 119), parse_seeds("0-20000000"), "png")
    names = [plan.name(label, seed) for label in plan.labels for seed in (0, 9, 10**7, 2 * 10**7)]
    assert names == sorted(names)
    assert (
        Plan("m:1:d", list("abcdefghij"), (3,), parse_seeds("7"), "png").name(3, 7)
        == "d/seed0000007.png"
    )
    assert Plan("m:1:d", [], (None,), parse_seeds("7"), "webp").name(None, 7) == "seed0000007.webp"


@pytest.mark.parametrize(
    ("classes", "folders"),
    [
        (["T-shirt/top", "Kleid größer"], ["T-shirt_top", "Kleid größer"]),
        (["..", ".hidden", "a\x00b", " c. ", "d:e\\f"], ["__", "_hidden", "a_b", "c_", "d_e_f"]),
        (["a/b", "a_b", "c"], ["class00", "class01", "class02"]),
        (["a/b", "A:B"], ["class00", "class01"]),
        (["x" * 201], ["class00"]),
        (["classes.txt"], ["class00"]),
        ([], []),
    ],
)
def test_a_class_has_a_folder_of_its_name_if_all_can(classes, folders):
    assert list(class_folders(classes)) == folders


@settings(max_examples=40)
@given(st.lists(st.text(min_size=1).filter(str.strip), max_size=12))
def test_folders_are_below_the_output_and_one_for_each_class(classes):
    folders = class_folders(classes)
    assert len({folder.casefold() for folder in folders}) == len(classes)
    for folder in folders:
        assert Path("out", folder).resolve().parent == Path("out").resolve()
        assert "\x00" not in folder


@pytest.mark.slow
def test_an_older_run_whose_folders_are_indices_is_refused_with_what_to_do(sid, server, tmp_path):
    asked = ["--models", server.models, "--seeds", "0-4", "-o", "out"]
    assert sid("generate", *asked).status == 0
    record = tmp_path / "out" / "sid-generate.json"
    older = json.loads(record.read_text())
    del older["folders"]
    record.write_text(json.dumps(older))
    says = "out was begun with folders class indices and not class names: name another with -o"
    assert_user_error(sid("generate", *asked), says)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("label", [None, "dress", "all"])
def test_each_file_is_what_the_server_answers_for_its_class_and_seed(
    sid, server, place, tmp_path, form, label
):
    chosen = [] if label is None else ["--class-label", label]
    done = sid("generate", *place, "--seeds", "0-9,20", *chosen, "--form", form, "-o", "out")
    assert (done.status, done.stderr) == (0, "")
    seeds = [*range(10), 20]
    labels = {None: None, "dress": [2], "all": [0, 1, 2]}[label]
    pairs = [(x, seed) for seed in seeds for x in ([seed % 3] if labels is None else labels)]
    assert done.stdout.startswith(f"out: {len(pairs)} images; seeds 0-9,20, classes: ")
    written = files_of(tmp_path / "out")
    del written["sid-generate.json"], written["classes.txt"]
    assert len(written) == len(pairs)
    with httpx.Client(headers={"Accept": f"image/{form}"}) as http:
        for index, seed in pairs:
            answer = http.get(f"{server.url}/generate?class_label={index}&seed={seed}")
            assert written[f"{FOLDERS[index]}/seed{seed:07d}.{form}"] == answer.content


@pytest.mark.slow
@pytest.mark.parametrize("out", ["out", "out.zip"])
def test_distill_reads_what_was_drawn(sid, place, tmp_path, out):
    sid("generate", *place, "--seeds", "0-3", "--class-label", "all", "-o", out)
    data = load_dataset(tmp_path / out, resolution=8)
    assert data.classes == FOLDERS, "in the model's order, which is not the alphabet's"
    assert data.labels.tolist() == [2] * 4 + [0] * 4 + [1] * 4, "images are read by folder name"
    assert list(data.images.shape) == [12, 1, 8, 8]
    assert not (tmp_path / "out.zip.parts").exists()


def test_a_model_without_classes_has_no_sub_folders(sid, models, tmp_path):
    write_bundle(models, "plain", classes=[])
    done = sid("generate", "--model", "plain", "--seeds", "0-2", "--class-label", "all", "-o", "o")
    assert done.status == 0
    assert sorted(files_of(tmp_path / "o")) == [
        "seed0000000.png", "seed0000001.png", "seed0000002.png", "sid-generate.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_one_image_by_a_server_is_the_one_of_this_process(sid, server, tmp_path):
    here = sid("generate", "--models", server.models, "--class-label", "dress", "--seed", 7)
    drawn = (tmp_path / "picture.png").read_bytes()
    there = sid("generate", "--url", server.url, "--class-label", "dress", "--seed", 7)
    assert there == here
    assert there.stdout.startswith("picture.png: Dress (class 2), seed 7, model tiny:1:")
    assert (tmp_path / "picture.png").read_bytes() == drawn
    sid("generate", "--url", server.url, "--seed", 7, "-o", "p.webp")
    with Image.open(tmp_path / "p.webp") as image:
        assert image.format == "WEBP"


# Stopping and going on


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "out"), [("here", "out"), ("server", "out.zip")], indirect=["place"]
)
def test_killed_and_begun_again_it_is_the_run_that_was_not_killed(sid, place, tmp_path, out):
    asked = [*place, "--seeds", "0-1199", "-o"]
    killed = start(*asked, tmp_path / out)
    wait_for_files(tmp_path / ("out.zip.parts" if out == "out.zip" else out), killed)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "out.zip").exists()
    resumed = sid("generate", *asked, out)
    assert resumed.status == 0, resumed
    assert re.search(r"1200 images, [0-9]+ of them there already", resumed.stdout)
    whole = tmp_path / "whole" / out
    whole.parent.mkdir()
    sid("generate", *asked, whole)
    if out == "out":
        assert files_of(tmp_path / out) == files_of(whole)
        assert len(files_of(whole)) == 1202
    else:
        assert (tmp_path / out).read_bytes() == whole.read_bytes()
    again = sid("generate", *asked, out)
    assert (again.status, again.stdout) == (0, f"{out}: all 1200 images are there already\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number", "status"),
    [
        pytest.param("here", signal.SIGINT, 130, id="here-int"),
        pytest.param("server", signal.SIGTERM, 143, id="server-term"),
        pytest.param("here", signal.SIGTERM, 143, id="here-term", marks=pytest.mark.long),
        pytest.param("server", signal.SIGINT, 130, id="server-int", marks=pytest.mark.long),
    ],
    indirect=["place"],
)
def test_a_signal_stops_it_and_it_says_what_is_there(place, tmp_path, number, status):
    process = start(*place, "--seeds", "0-99999", "-o", tmp_path / "out")
    wait_for_files(tmp_path / "out", process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    said = re.fullmatch(
        r"stopped: ([0-9]+) of 100000 images are in \S+, and the same command goes on\n", stderr
    )
    assert said, stderr
    there = [name for name in files_of(tmp_path / "out") if "seed" in name]
    assert len(there) >= int(said[1]) >= 1
    assert len({name for name in there if ".partial" not in name}) >= int(said[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "says"),
    [
        (["--seeds", "0-2"], "out was begun with seeds 0-2 and not 0-4: name another with -o"),
        (["--seeds", "0-4", "--form", "webp"], "out was begun with form webp and not png: name"),
        (["--seeds", "0-4", "--class-label", "2"], "classes 2 and not each seed modulo their"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_another_plan_does_not_go_on_there(sid, server, begun, says, suffix):
    sid("generate", "--models", server.models, *begun, "-o", f"out{suffix}")
    refused = sid("generate", "--models", server.models, "--seeds", "0-4", "-o", f"out{suffix}")
    assert_user_error(refused, says.replace("out ", f"out{suffix} "))


def test_another_model_does_not_go_on_there(sid, models):
    sid("generate", "--seeds", "0-2", "-o", "out")
    before = served_tag(models / "tiny")
    write_bundle(models, "tiny", version=2)
    after = served_tag(models / "tiny")
    says = f"out was begun with model {before} and not {after}: name another with -o, or remove"
    assert_user_error(sid("generate", "--seeds", "0-2", "-o", "out"), says)


@pytest.mark.slow
def test_a_model_that_the_server_changes_is_an_error_and_no_mixture(models, tmp_path):
    with serving(models, log=tmp_path / "log") as (server, url):
        process = start("--url", url, "--seeds", "0-999999", "-o", tmp_path / "out")
        wait_for_files(tmp_path / "out", process)
        write_bundle(models, "tiny", version=2)
        server.send_signal(signal.SIGHUP)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stderr.startswith("error: tiny:1:")
    assert "is not served: tiny is tiny:2:" in stderr
    assert "of 1000000 images are in" in stderr
    assert stderr.count("\n") == 1
    record = json.loads((tmp_path / "out" / "sid-generate.json").read_text())
    assert record["model"].startswith("tiny:1:")


@pytest.mark.slow
def test_a_server_that_is_restarted_under_it_ends_nothing(server, tmp_path):
    with serving(server.models, log=tmp_path / "log") as (first, url):
        process = start("--url", url, "--seeds", "0-1199", "-o", tmp_path / "out")
        wait_for_files(tmp_path / "out", process)
        first.kill()
        first.wait()
        port = url.rpartition(":")[2]
        with serving(server.models, "--port", port, log=tmp_path / "log"):
            stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, ""), stdout
    assert len(files_of(tmp_path / "out")) == 1202


@pytest.mark.slow
def test_two_runs_do_not_draw_into_one_folder(sid, server, tmp_path):
    plan = Plan("m:1:d", "abc", (None,), parse_seeds("0-2"), "png")
    other = open_output(tmp_path / "out", plan)
    other.begin()
    refused = sid("generate", "--models", server.models, "--seeds", "0-2", "-o", "out")
    assert_user_error(refused, "out: another sid generate draws into it now")
    other.close()
    assert isinstance(other, Folder)


# What cannot be


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "0-4"], "say where to with -o, a folder or a .zip"),
        (["--seeds", "0-4", "-o", "p.png"], "say where to with -o, a folder or a .zip"),
        (["--seeds", "0-4", "--seed", 3, "-o", "out"], "leave one of the two out"),
        (["--seeds", "4-0", "-o", "out"], "--seeds 4-0: the first is above the last"),
        (["--seeds", "0-4", "-o", "no/such/out"], "no/such: there is no such folder"),
        (["--seeds", "0-4", "-o", "file"], "file: File exists"),
        (["--seeds", "0-4", "-o", "full"], "full holds other files: name another with -o"),
        (["--seeds", "0-4", "-o", "file.zip"], "file.zip is not of this command: name another"),
        (["--seeds", "0-4", "-o", "out", "--class-label", "Coat"], "no class is named 'Coat'"),
        (["--seeds", "0-4", "-o", "out", "--model", "nope"], "no model is named 'nope': there is"),
        (["--seeds", "0-4", "-o", "out", "--form", "gif"], "--form is png, webp, jpeg, not gif"),
        (["--form", "webp"], "--form goes with --seeds"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(sid, place, tmp_path, arguments, says):
    (tmp_path / "full").mkdir()
    for name in ("file", "file.zip", "full/letter"):
        (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert_user_error(sid("generate", *place, *arguments), says)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_server_has_its_own_models_and_may_be_away(sid, server):
    refused = sid("generate", "--url", server.url, "--models", server.models)
    assert_user_error(refused, "--models is for drawing in this process, --url for a server")
    refused = sid("generate", "--url", server.url, "--model", "tiny:1:other", "--seed", 1)
    assert_user_error(refused, "tiny:1:other is not served: tiny is tiny:1:")
    started = time.monotonic()
    refused = sid("generate", "--url", "http://127.0.0.1:9", "--seeds", "0-4", "-o", "out")
    assert_user_error(refused, "http://127.0.0.1:9 cannot be reached")
    assert time.monotonic() - started < 20, "in the middle of a run it would be 30 s and more"


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["server", pytest.param("here", marks=pytest.mark.long)], indirect=True
)
def test_a_disk_that_takes_no_more_is_one_line_and_it_goes_on_later(sid, place, tmp_path):
    """A limit of the size of a file stands in for a full disk: the record fits, no image does."""
    asked = [*place, "--seeds", "0-9", "--form", "jpeg", "-o"]
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (195, 195))"
    process = start(*asked, tmp_path / "out", first=limit)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "File too large; 0 of 10 images are in" in stderr
    assert "and the same command goes on" in stderr
    assert stderr.count("\n") == 1
    assert sid("generate", *asked, "out").status == 0
    assert len(files_of(tmp_path / "out")) == 12


# Load on a server


def drive(window: Window, capacity: int, rounds: int = 400) -> list[int]:
    """The window's sizes before a server that draws `capacity` requests a second, each in 1 s."""
    now, sizes, under_way = 0.0, [], []
    free_at = [0.0] * capacity
    for _ in range(rounds):
        while len(under_way) < window.size:
            begins = max(now, min(free_at))
            free_at[free_at.index(min(free_at))] = begins + 1
            under_way.append((begins + 1, now, begins - now))
        now, sent, queued = under_way.pop(under_way.index(min(under_way)))
        window.answered(sent, now, queued, 1.0)
        sizes.append(window.size)
    return sizes


@pytest.mark.parametrize("capacity", [1, 4, 16])
def test_the_window_keeps_a_server_busy_and_its_queue_short(capacity):
    settled = drive(Window(), capacity)[-100:]
    assert min(settled) > capacity
    assert max(settled) <= 4 * capacity + 1


def test_requests_that_are_refused_together_halve_the_window_once():
    window = Window()
    for second in range(14):
        window.answered(second, second, 0, 1)
    assert window.size == 16
    for _ in range(16):
        window.refused(13, 14)
    assert window.size == 8
    window.refused(15, 16)
    assert window.size == 4
    for second in range(20, 30):
        window.refused(second, second)
    assert window.size == 1
    window.answered(40, 41, 9, 1)
    assert window.size == 1  # above the bound, it does not grow
    window.answered(42, 43, 0, 1)
    assert window.size == 2


def test_what_was_sent_before_a_change_changes_nothing():
    window = Window()
    window.answered(0, 1, 0, 1)
    window.answered(0.5, 1.5, 0, 1)
    window.answered(0.5, 1.5, 9, 1)
    assert window.size == 3


@pytest.mark.slow
def test_a_key_with_a_rate_and_a_small_burst_gets_all_its_images(models, tmp_path):
    """413 by the burst, then 429 after 429: it asks for less, and waits as it is told to."""
    made = new_key("alice")
    (tmp_path / "keys").write_text(made.line)
    # So slow a rate that drawing the first ten takes less time than waiting for the others.
    limits = {"SID_KEYS": str(tmp_path / "keys"), "SID_RATE": "5", "SID_BURST": "10"}
    with serving(models, log=tmp_path / "log", **limits) as (_, url):
        environment = os.environ | {"SID_KEY": made.secret}
        process = start("--url", url, "--seeds", "0-19", "-o", tmp_path / "out", env=environment)
        stdout, stderr = process.communicate(timeout=60)
        metrics = httpx.get(f"{url}/metrics").text
    assert (process.returncode, stderr) == (0, ""), stdout
    assert len(files_of(tmp_path / "out")) == 22
    refused = re.search(r'sid_rejections_total\{.*"bulk",reason="rate_limited"\} (\S+)', metrics)
    assert 1 <= float(refused[1]) <= 12


@pytest.mark.slow
def test_it_is_as_fast_as_a_plain_loop_and_others_are_served_meanwhile(tmp_path):
    """On models/fashion: 600 images by eight loops, then by a bulk run beside a client."""

    async def plainly(url: str) -> float:
        async with AsyncClient(url) as client:
            firsts = iter(range(0, 600, 15))

            async def loop() -> None:
                for first in firsts:
                    await client.batch(first, 15)

            started = time.monotonic()
            await asyncio.gather(*(loop() for _ in range(8)))
            return 600 / (time.monotonic() - started)

    async def beside(url: str, process: subprocess.Popen) -> list[float]:
        seconds = []
        async with AsyncClient(url, patience=0) as client:  # a 429 would be raised
            while process.poll() is None:
                started = time.monotonic()
                await client.generate("Dress", len(seconds))
                seconds.append(time.monotonic() - started)
                await asyncio.sleep(0.02)
        return seconds

    fashion = {"SID_DEFAULT_MODEL": "fashion"}
    with serving(SHIPPED, log=tmp_path / "log", **fashion) as (_, url):
        plain = asyncio.run(plainly(url))
        process = start("--url", url, "--seeds", "0-599", "-o", tmp_path / "out")
        waited = asyncio.run(beside(url, process))
        stdout, stderr = process.communicate()
        metrics = httpx.get(f"{url}/metrics").text
    assert (process.returncode, stderr) == (0, "")
    bulk = float(re.search(r"([0-9]+) a second", stdout)[1])
    assert bulk > plain / 3
    assert len(waited) > 5
    assert np.median(waited) < 3, "behind all that is drawn it would wait longer"
    assert not re.search(r"sid_rejections_total\{.*\} [1-9]", metrics)
