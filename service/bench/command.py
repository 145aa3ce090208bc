"""What `sid bench` does: check, load, report."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from service.bench import plot
from service.bench.facts import document
from service.bench.load import check_arrivals, check_positive, closed, open_loop
from service.bench.report import Report
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
        check_positive(n=images)
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
    plot_file: Path | None,
) -> None:
    """Put one load after the other on the server, then print and write the reports.

    Raises:
        BenchError: an option cannot be followed, or the server is out of reach.
    """
    if not connections and not rates:
        connections = _DEFAULT_CONNECTIONS
    for number in connections:
        check_positive(connections=number)
    for rate in rates:
        check_positive(rate=rate)
    check_arrivals(arrivals)
    _check_files(json_file, plot_file)

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
        _write_json(json.dumps(document(reports, target), indent=1), json_file)
    if plot_file is not None:
        _draw(reports, plot_file, f"POST {target.url}")


def _announce(load: str, seconds: float) -> None:
    """Say what goes on to a person who waits; a file or pipe wants the result only."""
    if sys.stderr.isatty():
        print(f"{load}: {seconds:g} s ...", file=sys.stderr)


def _check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """Find out before the load, and not after it, what cannot be written."""
    for file in (json_file, plot_file):
        if file is not None and not file.parent.is_dir():
            raise BenchError(f"{file.parent}: there is no such folder")
    if plot_file is not None:
        plot.check(plot_file)


def _write_json(text: str, file: Path) -> None:
    if file == STDOUT:
        print(text)
        return
    try:
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{file}: {error.strerror}") from error


def _draw(reports: Sequence[Report], file: Path, title: str) -> None:
    try:
        plot.draw([(report.label, report) for report in reports], file, title)
    except OSError as error:
        raise BenchError(f"{file}: {error.strerror}") from error
