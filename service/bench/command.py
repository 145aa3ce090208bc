"""What `sid bench` does: check, load, report."""

import json
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from service.bench.load import ARRIVALS, closed, open_loop
from service.bench.table import show
from service.bench.target import BenchError, Target, generate_body

STDOUT = Path("-")
_DEFAULT_CONNECTIONS = (1, 16, 64)


def make_target(
    url: str,
    *,
    path: str,
    body: str | None,
    model: str | None,
    class_label: str | None,
    images: int | None,
    headers: Sequence[str],
    seed: int,
) -> Target:
    """What is asked of the server; raises BenchError when that cannot be sent."""
    if images is not None:
        _check_positive(n=images)
    if body is None:
        body = generate_body(model, class_label, images)
    elif model is not None or class_label is not None:
        raise BenchError("--body is the whole body: write model and class into it")
    return Target(url, path=path, body=body, headers=headers, images=images or 1, seed=seed)


def run(
    target: Target,
    connections: Sequence[int],
    rates: Sequence[float],
    *,
    arrivals: str,
    max_connections: int,
    warmup: float,
    duration: float,
    timeout: float,
    json_file: Path | None,
) -> None:
    """Put one load after the other on the server, then print and write the reports.

    Raises:
        AllRefusedError: the server refused every request of a load; there are no others then.
        BenchError: an option cannot be followed, or the server is out of reach.
    """
    if not connections and not rates:
        connections = _DEFAULT_CONNECTIONS
    # All before the first load, which takes seconds.
    for number in connections:
        _check_positive(connections=number)
    for rate in rates:
        _check_positive(rate=rate)
    _check_positive(duration=duration, max_connections=max_connections)
    for name, seconds in (("warmup", warmup), ("timeout", timeout)):
        if not 0 <= seconds < math.inf:
            raise BenchError(f"{name}: {seconds} is not 0 or more")
    if arrivals not in ARRIVALS:
        raise BenchError(f"arrivals: {arrivals} is not one of {', '.join(ARRIVALS)}")
    if json_file is not None and not json_file.parent.is_dir():
        raise BenchError(f"{json_file.parent}: there is no such folder")

    reports = []
    for number in connections:
        _announce(f"closed loop, {number} connections", warmup + duration)
        reports.append(closed(target, number, warmup=warmup, duration=duration, timeout=timeout))
    for rate in rates:
        _announce(f"open loop, {rate:g} requests/s", warmup + duration)
        reports.append(
            open_loop(
                target,
                rate,
                arrivals=arrivals,
                max_connections=max_connections,
                warmup=warmup,
                duration=duration,
                timeout=timeout,
            )
        )

    show(reports, Console(stderr=json_file == STDOUT))
    if json_file is not None:
        document = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "target": {"url": target.url, "body": target.body},
            "reports": [report.as_dict() for report in reports],
        }
        _write_json(json.dumps(document, indent=1), json_file)


def _announce(load: str, seconds: float) -> None:
    """Say what goes on to a person who waits; a file or pipe wants the result only."""
    if sys.stderr.isatty():
        print(f"{load}: {seconds:g} s ...", file=sys.stderr)


def _check_positive(**numbers: float) -> None:
    """Raise BenchError, by name, when a number is not a positive one."""
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise BenchError(f"{name}: {value} is not a finite number above 0")


def _write_json(text: str, file: Path) -> None:
    if file == STDOUT:
        print(text)
        return
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{file}: {error.strerror}") from error
