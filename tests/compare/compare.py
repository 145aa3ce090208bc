"""Compare model servers: the same model, sessions, work and load, interleaved in one run.

Each round starts every server in turn, checks its pixels, warms it up, loads it and stops it: an
idle server would take processor time from the next one. Each round begins with another server,
and ratios are taken within a round, so that slow changes of the machine cancel out.

    .venv/bin/python tests/compare/compare.py --servers ours,litserve --out compare.json
"""

import argparse
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import compare_procs
import compare_report
import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SID = [sys.executable, "-m", "service.cli"]  # in the root of this repository
VENVS = Path(os.environ.get("COMPARE_VENVS", "/tmp/compare-venvs"))
ROUTE = "/generate"
CPUS = len(os.sched_getaffinity(0))
Result = dict[str, Any]
Driver = Callable[[str, int, float, float], Result]


@dataclass(frozen=True)
class Server:
    """How to start a server, and how to stop it."""

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path = HERE
    stop: signal.Signals = signal.SIGTERM


def servers() -> dict[str, Server]:
    """Every row by name.

    `NAME-2x1` has one worker a processor, each with one thread; `NAME-2x1-b8` takes batches of 8
    at most, as ours does by default.
    """
    ray_env = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Of its end only: else it waits half a minute for load balancers to notice.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }
    ray_fast = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
    ray_app = [str(VENVS / "ray/bin/python"), "ray_app.py"]
    litserve = Server(
        [str(VENVS / "litserve/bin/python"), "litserve_app.py"],
        stop=signal.SIGINT,  # on SIGTERM 0.2.19 leaves its workers behind
    )
    bentoml = Server(
        [str(VENVS / "bentoml/bin/bentoml"), "serve", "bentoml_app:Images"],
        {"BENTOML_DO_NOT_TRACK": "True"},
    )
    bentoml.command.extend(["--host", "127.0.0.1", "--port", "{port}"])
    ray = Server(ray_app, {**ray_env, **ray_fast})
    rows = {
        "ours": Server(
            [*SID, "serve", "--port", "{port}", "--models", "models"],
            {"SID_LOG_LEVEL": "warning", "SID_DEFAULT_MODEL": "fashion"},
            ROOT,
        ),
        "litserve": litserve,
        "litserve-fastqueue": replace(litserve, env={"COMPARE_FAST_QUEUE": "1"}),
        "bentoml": bentoml,
        "bentoml-front": replace(
            bentoml,
            command=[word.replace(":Images", ":Front") for word in bentoml.command],
        ),
        "ray": ray,
        "ray-blocking": replace(ray, env={**ray.env, "COMPARE_BLOCKING": "1"}),
        "ray-plain": Server(ray_app, ray_env),
    }
    workers = {"COMPARE_WORKERS": str(CPUS), "COMPARE_THREADS": "1"}
    for name in ("litserve", "bentoml", "ray"):
        env = {**rows[name].env, **workers}
        rows[f"{name}-2x1"] = replace(rows[name], env=env)
        rows[f"{name}-2x1-b8"] = replace(rows[name], env={**env, "COMPARE_MAX_BATCH": "8"})
    return rows


def pick(text: str) -> dict[str, Server]:
    """`a,b:NAME=VALUE:NAME=VALUE` as rows; what follows a colon is one more variable."""
    known, picked = servers(), {}
    for row in text.split(","):
        name, *settings = row.split(":")
        if name not in known:
            sys.exit(f"{name}: no such server; there are {', '.join(known)}")
        extra = dict(setting.split("=", 1) for setting in settings)
        picked[row] = replace(known[name], env={**known[name].env, **extra})
    return picked


def sid_bench(url: str, connections: int, warmup: float, duration: float) -> Result:
    """Load by `sid bench`: the one place that knows its options and its JSON."""
    # Another seed each: a server that shares the work of equal requests must not gain by it.
    body = '{"class_label": 3, "seed": {seed}}'
    command: list[Any] = [*SID, "bench", url, "-c", connections, "--path", ROUTE, "--body", body]
    command += ["--duration", duration, "--warmup", warmup, "--json", "-"]
    output, shares = _watched(command, duration)
    (report,) = json.loads(output)["reports"]
    latency = report["latency"] or {}
    refused = sum(n for status, n in report["statuses"].items() if not status.startswith("2"))
    return {
        "images_per_s": report["images_per_second"],
        "p50_ms": 1000 * latency["p50"] if latency else None,
        "p99_ms": 1000 * latency["p99"] if latency else None,
        "errors": refused + sum(report["errors"].values()),
        **shares,
    }


def wrk(url: str, connections: int, warmup: float, duration: float) -> Result:
    """Load by wrk, which takes less of the processors; it has no warm-up and whole seconds."""
    command = ["wrk", "-t1", f"-c{connections}", "-s", HERE / "post.lua", f"{url}{ROUTE}"]
    if warmup:
        _watched([*command, f"-d{max(1, round(warmup))}"], warmup)
    output, shares = _watched([*command, f"-d{max(1, round(duration))}"], duration)
    result = json.loads(output.splitlines()[-1])
    images, seconds = result.pop("images"), result.pop("seconds")
    return {"images_per_s": images / seconds, **result, **shares}


DRIVERS: dict[str, Driver] = {"sid": sid_bench, "wrk": wrk}


def _watched(command: list[Any], duration: float) -> tuple[str, dict[str, float]]:
    """Run a load generator; return its output and what the processors did meanwhile."""
    load = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    watch = compare_procs.Watch(load)
    output, errors = load.communicate()
    shares = watch.finish(duration)
    if load.returncode:
        raise RuntimeError(f"{command[0]} ended with {load.returncode}: {errors}")
    return output, shares


def measure(
    name: str, server: Server, options: argparse.Namespace, scratch: Path, expected: np.ndarray
) -> Result:
    """One server, one round: start, check, warm up, load, stop."""
    url = f"http://127.0.0.1:{options.port}"
    drive = DRIVERS[options.driver]
    loads: Result = {}
    with running(name, server, options.port, scratch) as (pixels, start_seconds):
        if not np.array_equal(pixels, expected):
            raise RuntimeError("it draws other pixels, so its speed says nothing")
        result = {"start_s": round(start_seconds, 2), "loads": loads}
        # Workers beside the first one, and batchers that learn (BentoML), need a moment.
        time.sleep(options.settle)
        drive(url, 16, 0, options.warmup)
        for connections in options.connections:
            load = drive(url, connections, options.warmup, options.duration)
            used = CPUS * load["cpu_server_pct"] / 100
            loads[str(connections)] = {
                **load,
                "images_per_cpu_s": load["images_per_s"] / used if used else None,
                **compare_procs.memory(compare_procs.below(os.getpid())),
            }
    return result


@contextmanager
def running(
    name: str, server: Server, port: int, scratch: Path
) -> Iterator[tuple[np.ndarray, float]]:
    """Start a server, wait for its first image and stop it in the end."""
    home = scratch / "h"  # short: a unix socket's path has 107 characters, and Ray uses most
    home.mkdir()
    log = scratch / "server.log"
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "COMPARE_PORT": str(port),
        # What servers leave in the home directory and /tmp (Ray: a token, its session; BentoML:
        # sockets) goes away with the round.
        "HOME": str(home),
        "TMPDIR": str(home),
        "RAY_TMPDIR": str(home),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(home / "p/haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(home / "p/a.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(home / "p"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(home / "p/server-state"),
        **server.env,
    }
    command = [word.replace("{port}", str(port)) for word in server.command]
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=server.cwd,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        pixels = _wait(process, port)
        yield pixels, time.monotonic() - started
    except Exception as error:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{name}: {error}\n{tail}") from error
    finally:
        if killed := compare_procs.end(process, server.stop):
            print(f"  {name}: {killed} processes did not end by themselves", file=sys.stderr)
        shutil.rmtree(home, ignore_errors=True)


def _wait(process: subprocess.Popen[Any], port: int, patience: float = 90) -> np.ndarray:
    """The image of class 3 and seed 7, as soon as the server gives it."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{ROUTE}",
        json.dumps({"class_label": 3, "seed": 7}).encode(),
        {"Content-Type": "application/json"},
    )
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return np.array(Image.open(io.BytesIO(answer.read())))
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no image: {error}") from error
            time.sleep(0.1)


def measure_bare(options: argparse.Namespace) -> Result:
    """The loop without a server, in a process of its own."""
    command = [sys.executable, str(HERE / "bare_onnx.py"), "--slice", str(options.bare_slice)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    result: Result = json.loads(done.stdout)
    result["images_per_s_best"] = max(way["images_per_s"] for way in result["best"].values())
    return result


def reference() -> np.ndarray:
    """The image that every server must give."""
    code = (
        "import compare_work, sys;"
        " sys.stdout.buffer.write(compare_work.Painter().paint([(3, 7)])[0])"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True)
    return np.array(Image.open(io.BytesIO(done.stdout)))


def versions(rows: dict[str, Server]) -> dict[str, dict[str, str]]:
    """What each server's environment holds of what matters."""
    code = (
        "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in"
        " m.distributions() if d.name.lower() in ('litserve', 'bentoml', 'ray', 'sid-serve',"
        " 'onnxruntime', 'numpy', 'pillow', 'uvicorn', 'uvloop', 'httptools', 'starlette')}))"
    )
    pythons = {row.split(":")[0]: Path(s.command[0]).parent / "python" for row, s in rows.items()}
    return {
        name: json.loads(subprocess.check_output([str(python), "-I", "-c", code], text=True))
        for name, python in pythons.items()
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=f"Servers: {', '.join(servers())}"
    )
    parser.add_argument("--servers", default="ours,litserve-2x1-b8,bentoml-2x1-b8,ray-2x1-b8")
    parser.add_argument("--baseline", help="of the ratios; default: the first server")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration", type=float, default=10, help="seconds of each load")
    parser.add_argument("--warmup", type=float, default=2, help="seconds before each load")
    parser.add_argument("--settle", type=float, default=2, help="seconds after a start")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--driver", choices=DRIVERS, default="sid")
    parser.add_argument("--port", type=int, default=8100)
    parser.add_argument("--bare-slice", type=float, default=0.4, help="seconds; 0: no bare loop")
    parser.add_argument("--out", type=Path, help="JSON of all; the table goes beside it as .md")
    return parser.parse_args()


def main() -> None:
    options = parse()
    rows = pick(options.servers)
    names = list(rows)
    baseline = options.baseline or names[0]
    if baseline not in rows:
        sys.exit(f"--baseline {baseline} is not among the servers")
    compare_procs.adopt_orphans()
    # Started with &, a runner ignores SIGINT, and its servers would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    expected = reference()
    rounds: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="cmp-", dir="/tmp") as folder:
        for number in range(options.rounds):
            done: Result = {"servers": {}, "load_average": os.getloadavg()}
            rounds.append(done)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                print(f"round {number + 1}: {name}", file=sys.stderr)
                try:
                    result = measure(name, rows[name], options, Path(folder), expected)
                except Exception as error:  # the others still count
                    print(error, file=sys.stderr)
                    done.setdefault("failures", {})[name] = str(error)
                else:
                    done["servers"][name] = result
            if options.bare_slice:
                print(f"round {number + 1}: bare loop", file=sys.stderr)
                done[compare_report.BARE] = measure_bare(options)
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": CPUS, "platform": platform.platform()},
        "settings": {k: v for k, v in vars(options).items() if k != "out"},
        "environment": {name: rows[name].env for name in names},
        "versions": versions(rows),
        "baseline": baseline,
        "medians": compare_report.summarise(rounds, names, baseline, options.connections),
        "bare": compare_report.summarise_bare(rounds),
        "rounds": rounds,
    }
    table = compare_report.markdown(document)
    print(table)
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        options.out.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    if failed := {name for done in rounds for name in done.get("failures", {})}:
        sys.exit(f"failed in a round: {', '.join(sorted(failed))}")


if __name__ == "__main__":
    main()
