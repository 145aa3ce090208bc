"""`sid plan` and `sid bench --curve`, from the command line to the files that they write."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from service import cli
from service.plan import PlanError
from service.plan.curve import read_curve, write_curve
from service.plan.measure import measure_curve
from service.plan.output import as_values
from service.plan.search import Part, Plan, Wish
from service.priority import Priority
from service.settings import Settings
from tests.before_exec import before_exec
from tests.bundles import write_bundle
from tests.deploy.chart import Rendered, settings
from tests.service.plan.curves import make_curve, with_course, with_pauses, with_served
from tests.service.waiting import until

WISH = Wish(150, 0.1, "steady", 0.5)
PLAN = Plan(
    replicas=12, concurrency=3, max_batch_size=8, queue_size=98, p50=0.02, p99=0.09, refused=0.0,
    utilisation=0.9, load=0.8, peak=900.0, in_system=20.0, per_million=0.03,
    parts={Priority.INTERACTIVE: Part(share=1.0, p50=0.02, p99=0.09, refused=0.0, waited=0.001)},
)  # fmt: skip


@pytest.fixture
def curve_file(tmp_path):
    file = tmp_path / "curve.json"
    write_curve(make_curve(lambda *_: 10.0), file)
    return file


def sid(capsys, *arguments):
    """Run a command in this process: its exit status, standard output and standard error."""
    status = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sid", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code
    output = capsys.readouterr()
    return status, output.out, output.err


def test_a_plan_is_a_table_json_and_values(capsys, curve_file, tmp_path):
    values = tmp_path / "values.yaml"
    status, out, err = sid(
        capsys, "plan", curve_file, "--rate", 150, "--p99", 100, "--price", 0.9, "--json", "-",
        "--values", values,
    )  # fmt: skip
    assert not status, err
    document = json.loads(out)
    plan = document["plan"]
    assert plan["replicas"] == 2
    assert plan["p50"] <= plan["p99"] <= 0.1
    assert plan["per_million"] == pytest.approx(2 * 0.9 / (150 * 3600) * 1e6)
    assert document["wish"] == {
        "rate": 150.0, "p99": 0.1, "shape": "poisson", "price": 0.9, "mix": {"interactive": 1.0}
    }  # fmt: skip
    assert document["curve"]["bundle"] == "fashion:5:0123456789ab:float32"
    assert "150 requests/s, poisson, p99 100 ms" in err
    assert "75% of 200 images/s" in err
    assert yaml.safe_load(values.read_text())["gateway"]["replicas"] == 2


def test_a_mix_is_answered_by_priority(capsys, curve_file, tmp_path):
    values = tmp_path / "values.yaml"
    status, out, err = sid(
        capsys, "plan", curve_file, "--rate", 150, "--p99", 100, "--mix",
        "background=0.1,interactive=0.6,bulk=0.3", "--json", "-", "--values", values,
    )  # fmt: skip
    assert not status, err
    document = json.loads(out)
    shares = {"interactive": 0.6, "bulk": 0.3, "background": 0.1}
    assert document["wish"]["mix"] == shares
    parts = document["plan"]["parts"]
    assert {name: part["share"] for name, part in parts.items()} == shares
    assert document["plan"]["p99"] == parts["interactive"]["p99"] <= 0.1
    waited = [parts[name]["waited"] for name in shares]
    assert waited == sorted(waited)
    shown = " ".join(err.split())
    asked = "150 requests/s, 0.6 interactive, 0.3 bulk, 0.1 background, poisson, interactive p99"
    assert asked in shown
    assert asked in values.read_text()
    for name in shares:
        for what in ("p50, p99", "refused", "in the queue"):
            assert f"{name}: {what} " in shown


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "onnxruntime-cuda", "triton"])
def test_the_values_are_the_charts(engine):
    """Helm checks them by the chart's schema; the gateways then have the plan's settings."""
    curve = make_curve(lambda *_: 10.0, engine=engine)
    values = yaml.safe_load(as_values(PLAN, WISH, curve))
    rendered = Rendered(values)
    part = "triton" if engine == "triton" else "gateway"
    assert rendered.one("Deployment", part)["spec"]["replicas"] == 12
    (gateway,) = rendered.pod("gateway")["containers"]
    given = settings(gateway)
    assert given["concurrency"] == "3"
    assert given["max_batch_size"] == "8"
    assert given["queue_size"] == "98"
    if engine != "triton":
        assert given["engine"] == ("cuda" if "cuda" in engine else engine)
        assert gateway["resources"]["limits"]["cpu"] == "2"
        assert ("nvidia.com/gpu" in gateway["resources"]["limits"]) == ("cuda" in engine)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", "0", "--p99", "100"], "rate: 0.0 is not a finite number above 0"),
        (["--rate", "10", "--p99", "nan"], "p99: nan is not"),
        (["--rate", "10", "--p99", "100", "--price", "-1"], "price: -1.0 is not"),
        (["--rate", "10", "--p99", "100", "--arrivals", "odd"], "odd is not one of poisson, "),
        (["--rate", "10", "--p99", "9"], "no number of machines answers 99 of 100"),
        (["--rate", "9", "--p99", "99", "--mix", "slow=1"], "'slow' is no priority; interactive, "),
        (["--rate", "9", "--p99", "99", "--mix", ""], "--mix: '' is no priority"),
        (
            ["--rate", "9", "--p99", "99", "--mix", "bulk"],
            "'bulk': a share is expected, as in bulk=",
        ),
        (["--rate", "9", "--p99", "99", "--mix", "bulk=x"], "'bulk=x': a share is expected"),
        (["--rate", "9", "--p99", "99", "--mix", "bulk=1,bulk=0"], "--mix: bulk is there twice"),
        (["--rate", "9", "--p99", "99", "--mix", "bulk=nan"], "bulk has a share of nan; 0.01 to 1"),
        (
            ["--rate", "9", "--p99", "99", "--mix", "bulk=0.001,interactive=0.999"],
            "bulk has a share of 0.001; 0.01 to 1 is expected",
        ),
        (
            ["--rate", "9", "--p99", "99", "--mix", "bulk=0.3,interactive=0.6"],
            "the shares add up to 0.9; 1 is expected",
        ),
        (
            ["--rate", "9", "--p99", "9", "--mix", "bulk=0.3,interactive=0.7"],
            "no number of machines answers 99 of 100 interactive requests in 9 ms",
        ),
        (["--rate", "10", "--p99", "100", "--json", "/nowhere/plan.json"], "/nowhere/plan.json: "),
    ],
)
@pytest.mark.usefixtures("short_trials")
def test_what_cannot_be_planned_is_one_line(capsys, curve_file, arguments, words):
    status, _, err = sid(capsys, "plan", curve_file, *arguments)
    assert status == 2
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def served_by(*connections: int, busy: float = 1) -> list[dict[str, float]]:
    """Entries of a curve's `served`."""
    return [
        {"connections": one, "batch": 1, "busy": busy, "milliseconds": 1} for one in connections
    ]


def edited(**changes):
    """The curve's JSON with other cells or fields."""
    document = json.loads(make_curve(lambda *_: 10.0, slots=2, batches=(1, 2)).model_dump_json())
    first = document["cells"][0]
    for name, value in changes.items():
        if name in first:
            first[name] = value
        elif name == "cells":
            document["cells"] = document["cells"][value]
        else:
            document[name] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Invalid JSON"),
        ("batch,ms\n1,4\n", "Invalid JSON"),
        ("[]", "an object"),
        ("{}", "Field required"),
        ('{"reports": []}', "Field required"),
        (edited(format=3), "format: Input should be 1 or 2"),
        (edited(format=2), "format 2 has lone_loop_ms and lone_client_ms, each batch size once"),
        (edited(rested=[{"batch": 1, "batches": 1, "milliseconds": [1] * 9}]), "format 1 has no"),
        (
            edited(woken=[{"busy": 0, "wakes": 1, "milliseconds": [1]}]),
            "woken.0.milliseconds: 9 as",
        ),
        (edited(levels=[50, 99]), "levels: "),
        (edited(milliseconds=[1, 2]), "cells.0.milliseconds: 9 ascending numbers are expected"),
        (edited(milliseconds=[2, *[1] * 8]), "cells.0.milliseconds: 9 ascending"),
        (edited(milliseconds=[0] * 9), "cells.0.milliseconds.0: Input should be greater than 0"),
        (edited(milliseconds=[float("nan")] * 9), "cells.0.milliseconds.0: "),
        (edited(cells=slice(0, 0)), "cells: List should have at least 1 item"),
        (edited(cells=slice(1, None)), "cells: each batch size from 1 is expected once"),
        (edited(cells=slice(0, 3)), "cells: each batch size from 1 is expected once"),
        (edited(batch=2), "cells: each batch size from 1 is expected once"),
        (
            edited(course={"began": [0, 1], "ranks": [0.5], "seconds": 2}),
            "course: as many ranks as times are expected, and those ascend",
        ),
        (
            edited(course={"began": [0], "ranks": [1.5], "seconds": 2}),
            "course.ranks.0: Input should be less than 1",
        ),
        (edited(served=served_by(4)), "served: two or more ascending numbers of connections"),
        (edited(served=served_by(4, 1)), "served: two or more ascending numbers of connections"),
        (edited(served=served_by(4, 4)), "served: two or more ascending numbers of connections"),
        (edited(served=served_by(1, 4, busy=0)), "served.0.busy: Input should be greater than 0"),
        (edited(busy=10**9), "cells.0.busy: Input should be less than or equal to 1024"),
    ],
)
def test_a_bad_curve_file_is_one_line(tmp_path, text, words):
    file = tmp_path / "curve.json"
    file.write_text(text)
    with pytest.raises(PlanError) as raised:
        read_curve(file)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"{file}: ")
    assert words in line
    assert line.endswith("`sid bench --curve` wrote is expected")


def test_a_curve_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(PlanError, match="No such file"):
        read_curve(tmp_path / "none.json")
    with pytest.raises(PlanError, match="Is a directory"):
        read_curve(tmp_path)


def test_a_curve_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "curve.json"
    curve = make_curve(lambda busy, batch: busy + batch, slots=2, batches=(1, 2, 8))
    later = with_course(with_pauses(curve), spell=0.1, seconds=1)
    latest = with_served(later, 1.2)
    counts = ((curve, 6), (with_pauses(curve), 6 + 3 + 3), (later, 12), (latest, 12 + 3))
    for one, lines in counts:
        write_curve(one, file)
        assert read_curve(file) == one
        assert file.read_text().count("\n  {") == lines


@pytest.mark.usefixtures("short_trials")
def test_an_older_curve_is_planned_for_and_called_too_hopeful(capsys, tmp_path):
    file = tmp_path / "curve.json"
    first = make_curve(lambda *_: 10.0)
    second = with_pauses(first)
    third = with_course(second, spell=0.1)
    for curve, lacks in (
        (first, "(format 1)"),
        (second, "(no course)"),
        (third, "(no served)"),
        (with_served(third, 1.1), ""),
    ):
        write_curve(curve, file)
        status, _, err = sid(capsys, "plan", file, "--rate", 50, "--p99", 100)
        assert not status
        assert (f"{lacks}, so the times are too hopeful" in err) == bool(lacks)


def test_a_curve_is_of_one_engine():
    with pytest.raises(PlanError, match="leave one device in SID_DEVICES"):
        measure_curve(Settings(devices="cpu,cpu"), None, warmup=0, duration=1)


def test_a_curve_is_not_measured_where_it_cannot_be_written(capsys, tmp_path):
    status, _, err = sid(capsys, "bench", "--curve", tmp_path / "none" / "curve.json")
    assert status == 2
    assert "there is no such folder" in err
    status, _, err = sid(capsys, "bench", "--curve", tmp_path / "curve.json", "--rate", "5")
    assert status == 2
    assert "--curve measures no load" in err


@pytest.mark.slow
def test_a_curve_of_this_machine_makes_a_plan(tmp_path, monkeypatch):
    """The real engine and a real gateway, behind keys that the measurement does without."""
    write_bundle(tmp_path / "models")
    monkeypatch.setenv("SID_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("SID_CONCURRENCY", "2")
    monkeypatch.setenv("SID_MAX_BATCH_SIZE", "3")
    monkeypatch.setenv("SID_QUEUE_SIZE", "1")
    monkeypatch.setenv("SID_KEYS", str(tmp_path / "keys"))
    file = tmp_path / "curve.json"
    command = [sys.executable, "-m", "service.cli", "bench", "--curve", str(file)]
    subprocess.run([*command, "--duration", "0.1", "--warmup", "0"], check=True)
    curve = read_curve(file)
    assert (curve.slots, curve.batches) == (2, [1, 2, 3])
    assert curve.bundle.startswith("tiny:1:")
    assert curve.engine.name == "onnxruntime"
    assert all(cell.batches >= 4 * cell.busy for cell in curve.cells)  # in each of four rounds
    assert curve.format == 2
    assert curve.gateway.loop_ms > 0
    assert curve.gateway.lone_loop_ms > 0
    assert curve.gateway.lone_client_ms > 0
    assert [one.connections for one in curve.served] == [1, 2, 2 * 2 * 3]
    assert [round(one.batch, 1) for one in curve.served[:2]] == [1, 1]
    assert 1 < curve.served[-1].batch <= 3
    assert 0 == curve.course.began[0] <= curve.course.began[-1] < curve.course.seconds
    assert min(curve.course.ranks) == 0 < max(curve.course.ranks)
    made = [sys.executable, "-m", "service.cli", "plan", str(file), "--rate", "1", "--json", "-"]
    late = max(one.milliseconds[-1] for one in curve.woken)
    wish = 2 * (curve.lone[-1] + late + curve.gateway.lone_ms)
    out = subprocess.run([*made, "--p99", str(wish)], check=True, stdout=subprocess.PIPE)
    assert json.loads(out.stdout)["plan"]["replicas"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_measurement_that_is_ended_leaves_no_gateway_behind_and_no_traceback(tmp_path, number):
    """In a script's background too, where SIGINT is ignored at first."""
    write_bundle(tmp_path / "models")
    file = tmp_path / "curve.json"
    command = [sys.executable, "-m", "service.cli", "bench", "--curve", file, "--duration", "60"]
    process = subprocess.Popen(
        before_exec("signal.signal(signal.SIGINT, signal.SIG_IGN)", *command),
        stderr=subprocess.PIPE,
        env=os.environ | {"SID_MODELS": str(tmp_path / "models")},
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: children.read_text())
    gateway = int(children.read_text())
    time.sleep(2)  # it is measured, or about to be
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode not in (0, -number)
    assert b"Traceback" not in told
    assert not Path(f"/proc/{gateway}").exists()
    assert not file.exists()
