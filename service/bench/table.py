"""Reports for people: three small tables. `client µs` is this generator's CPU time a request."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from service.bench.report import Report
from service.bench.stats import Latency

_BUSY = 0.8  # share of a processor above which the generator may be what was measured


def show(reports: Sequence[Report], console: Console) -> None:
    """Print what the reports say."""
    console.print(_table("latency of good answers, ms", _LATENCY, map(_latency_row, reports)))
    console.print(_table("what became of the requests", _OUTCOME, map(_outcome_row, reports)))
    stages = list(dict.fromkeys(stage for report in reports for stage in report.stages))
    if stages:
        rows = (
            [report.label, *(_ms(report.stages.get(stage)) for stage in stages)]
            for report in reports
        )
        console.print(_table("mean Server-Timing, ms", ["load", *stages], rows))
    for report in reports:
        share = report.cpu_seconds / (report.warmup + report.duration)
        if share > _BUSY:
            console.print(
                f"{report.label}: this generator kept {share:.0%} of a processor busy, "
                "and may have been the limit."
            )


_LATENCY = ["load", "good/s", "images/s", "mean", "p50", "p90", "p99", "p99.9", "max"]
_OUTCOME = ["load", "counted", "statuses", "refused p50", "p99", "no answer", "client µs"]


def _latency_row(report: Report) -> list[str]:
    of = report.latency
    times = [of.mean, of.p50, of.p90, of.p99, of.p99_9, of.max] if of else [None] * 6
    rates = [f"{report.requests_per_second:.1f}", f"{report.images_per_second:.1f}"]
    return [report.label, *rates, *map(_ms, times)]


def _outcome_row(report: Report) -> list[str]:
    failures = dict(report.errors)
    if report.not_sent:
        failures["not sent"] = report.not_sent
    refused: Latency | None = report.refused
    return [
        report.label,
        str(report.requests),
        _counts(report.statuses),
        _ms(refused.p50 if refused else None),
        _ms(refused.p99 if refused else None),
        _counts(failures),
        f"{report.cpu_seconds_per_request * 1e6:.0f}",
    ]


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _counts(counts: dict[int, int] | dict[str, int]) -> str:
    return "\n".join(f"{name}: {count}" for name, count in counts.items()) or "-"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
