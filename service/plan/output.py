"""A plan for people (a table), for programs (JSON) and for Helm (values for the chart)."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table

from service.plan.curve import Curve
from service.plan.search import Plan, Wish
from service.serving.engine_selection import ENGINES

# What SID_ENGINE calls each engine.
_SETTINGS = {engine.name: setting for setting, engine in ENGINES.items()}


def table(plan: Plan, wish: Wish) -> Table:
    """Two columns: what, and how much."""
    rows = {
        "machines": f"{plan.replicas}",
        "batches at a time": f"{plan.concurrency}",
        "largest batch": f"{plan.max_batch_size}",
        "queue": f"{plan.queue_size}",
        "p50, p99": f"{plan.p50 * 1000:.1f} ms, {plan.p99 * 1000:.1f} ms",
        "refused": f"{plan.refused:.2%}",
        "slots busy": f"{plan.utilisation:.0%}",
        "of the peak": f"{plan.load:.0%} of {plan.replicas * plan.peak:,.0f} images/s",
        "under way in each": f"{plan.in_system:.1f} requests",
    }
    if plan.per_million is not None:
        rows["a million images"] = f"{plan.per_million:.4g}"
    title = f"{wish.rate:g} requests/s, {wish.shape}, p99 {wish.p99 * 1000:g} ms"
    shown = Table(
        title=title, title_justify="left", title_style="bold", box=None, show_header=False
    )
    shown.add_column()
    shown.add_column(justify="right")
    for row in rows.items():
        shown.add_row(*row)
    return shown


def as_json(plan: Plan, wish: Wish, curve: Curve) -> str:
    """The plan, what was wished and what it was made of; times are in seconds."""
    measured = curve.model_dump(mode="json", include={"date", "machine", "bundle", "engine"})
    document = {"wish": asdict(wish), "plan": asdict(plan), "curve": measured}
    return json.dumps(document, indent=1)


def as_values(plan: Plan, wish: Wish, curve: Curve) -> str:
    """Values for the chart in deploy/helm, to be given to helm by --values."""
    machine = curve.machine
    about = [
        f"{wish.rate:g} requests/s, {wish.shape}, p99 {wish.p99 * 1000:g} ms, by `sid plan`;",
        f"measured on {machine.processor}, {machine.cores} cores, {curve.date:%Y-%m-%d}:",
        f"{curve.bundle} by {curve.engine.name} {curve.engine.version}.",
    ]
    comment = "".join(f"# {line}\n" for line in about)
    return comment + "\n".join(_lines(_values(plan, curve))) + "\n"


def _values(plan: Plan, curve: Curve) -> dict[str, Any]:
    settings: dict[str, object] = {
        "SID_CONCURRENCY": plan.concurrency,
        "SID_MAX_BATCH_SIZE": plan.max_batch_size,
        "SID_QUEUE_SIZE": plan.queue_size,
    }
    values: dict[str, Any] = {"gateway": {"replicas": plan.replicas}}
    if (engine := _SETTINGS.get(curve.engine.name)) is None:  # Triton, beside each gateway
        values["triton"] = {"enabled": True, "replicas": plan.replicas}
    else:
        settings["SID_ENGINE"] = engine
        settings["SID_PRECISION"] = curve.engine.precision
        settings["SID_THREADS"] = curve.engine.threads
        resources = {"cpu": str(curve.machine.cores)}
        if engine == "cuda":
            resources["nvidia.com/gpu"] = "1"
        values["gateway"]["resources"] = {"requests": resources, "limits": resources}
    values["gateway"]["settings"] = {name: str(value) for name, value in settings.items()}
    return values


def _lines(values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """YAML of nested mappings; JSON's numbers and strings are YAML's."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {json.dumps(value)}"
