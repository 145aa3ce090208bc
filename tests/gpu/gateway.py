"""The gateway on the card under load: images a second, and whether the card is busy."""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.gpu.cuda_engine import engine_missing
from tests.gpu.record import Record, Skipped
from tests.gpu.runner import ROOT

_SID = (sys.executable, "-m", "service.cli")
_READY_SECONDS = 60
_SAMPLE_MS = 200


def run(record: Record) -> None:
    """Fill the table: in float16, then as the gateway computes by default."""
    if why := engine_missing(toy=record.toy):
        raise Skipped(why)
    for key, precision in (("float16", "float16"), ("float32", "float32")):
        images, busy, p99 = measure(precision, toy=record.toy)
        record.row(key, images, p99_ms=1000 * p99)
        if busy is not None:
            record.row(f"{key} busy", busy)
    if record.toy:
        record.note("how busy a card is can be seen on a card only")
    elif busy is None:
        record.note("nvidia-smi is missing: how busy the card was is not known")


def measure(precision: str, *, toy: bool) -> tuple[float, float | None, float]:
    """Serve models/fashion alone and put load on it: images/s, percent busy, p99 in seconds."""
    connections, warmup, seconds = (4, 0.1, 0.3) if toy else (64, 1.5, 5)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), precision, toy) as url:
        report = Path(folder) / "bench.json"
        bench = [
            *_SID, "bench", url, "-c", str(connections), "--model", "fashion",
            "--warmup", str(warmup), "--duration", str(seconds), "--json", str(report),
        ]  # fmt: skip
        with contextlib.ExitStack() as stack:
            sampler = None if toy else stack.enter_context(sampling())
            subprocess.run(bench, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            busy = sampler.last(seconds) if sampler else None
        (figures,) = json.loads(report.read_text())["reports"]
    if set(figures["statuses"]) != {"200"} or figures["errors"]:
        raise RuntimeError(f"not every request was answered: {figures['statuses']}")
    return figures["images_per_second"], busy, figures["latency"]["p99"]


@contextlib.contextmanager
def serving(folder: Path, precision: str, toy: bool) -> Iterator[str]:
    """A gateway that serves models/fashion and nothing else; its address."""
    models = folder / "models"
    models.mkdir()
    (models / "fashion").symlink_to(ROOT / "models" / "fashion")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SID_")}
    engine = {"SID_ENGINE": "cuda", "SID_PRECISION": precision}
    settings = {"SID_MODELS": str(models), "SID_LOG_LEVEL": "warning"} | ({} if toy else engine)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [*_SID, "serve", "--port", str(port)], cwd=ROOT, env=kept | settings, stdout=sys.stderr
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return once the canary has been drawn; raise where the gateway ends or never gets there."""
    patience = time.monotonic() + _READY_SECONDS
    while time.monotonic() < patience:
        if process.poll() is not None:
            raise RuntimeError(f"the gateway ended with exit status {process.returncode}")
        with contextlib.suppress(URLError, OSError), urlopen(f"{url}/readyz", timeout=10):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the gateway was not ready after {_READY_SECONDS} s")


class Sampler:
    """What nvidia-smi says five times a second."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def last(self, seconds: float) -> float | None:
        """The mean percent busy over the last seconds; ends the sampling."""
        self._process.terminate()
        said = self._process.communicate()[0].split()
        wanted = said[-int(1000 * seconds / _SAMPLE_MS) :]
        return statistics.fmean(float(one) for one in wanted) if wanted else None


@contextlib.contextmanager
def sampling() -> Iterator[Sampler | None]:
    """Have nvidia-smi watch the first card; None where it is missing."""
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen(
            [*command, "--id=0", f"--loop-ms={_SAMPLE_MS}"], stdout=subprocess.PIPE, text=True
        )
    except OSError:
        yield None
        return
    with process:
        try:
            yield Sampler(process)
        finally:
            process.terminate()
