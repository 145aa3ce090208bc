"""A plan for people (a table), for programs (JSON) and for Helm (values for the chart)."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table

from service.plan.curve import Curve
from service.plan.search import Plan, Wish
from service.priority import Priority
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
        **_answers(plan),
        "slots busy": f"{plan.utilisation:.0%}",
        "of the peak": f"{plan.load:.0%} of {plan.replicas * plan.peak:,.0f} images/s",
        "under way in each": f"{plan.in_system:.1f} requests",
    }
    if plan.per_million is not None:
        rows["a million images"] = f"{plan.per_million:.4g}"
    shown = Table(
        title=_wished(wish), title_justify="left", title_style="bold", box=None, show_header=False
    )
    shown.add_column()
    shown.add_column(justify="right")
    for row in rows.items():
        shown.add_row(*row)
    return shown


def _answers(plan: Plan) -> dict[str, str]:
    """The rows about times and rejections, with the priority before each of several."""
    rows = {}
    for priority, part in plan.parts.items():
        of = f"{priority}: " if len(plan.parts) > 1 else ""
        rows[f"{of}p50, p99"] = f"{part.p50 * 1000:.1f} ms, {part.p99 * 1000:.1f} ms"
        rows[f"{of}refused"] = f"{part.refused:.2%}"
        rows[f"{of}in the queue"] = f"{part.waited * 1000:.1f} ms"
    return rows


def _wished(wish: Wish) -> str:
    """The wish in one line."""
    mix = wish.mix
    shares = "".join(f", {share:.4g} {priority}" for priority, share in mix.items())
    several = len(mix) > 1
    whose = f"{wish.most_urgent} " if several else ""
    return (
        f"{wish.rate:g} requests/s{shares if several else ''}, {wish.shape}, "
        f"{whose}p99 {wish.p99 * 1000:g} ms"
    )


def as_json(plan: Plan, wish: Wish, curve: Curve) -> str:
    """The plan, what was wished and what it was made of; times are in seconds."""
    measured = curve.model_dump(mode="json", include={"date", "machine", "bundle", "engine"})
    wished, planned = asdict(wish), asdict(plan)
    wished["mix"] = _named(wish.mix)
    planned["parts"] = _named(planned["parts"])
    return json.dumps({"wish": wished, "plan": planned, "curve": measured}, indent=1)


def _named(by_priority: Mapping[Priority, Any]) -> dict[str, Any]:
    return {str(priority): value for priority, value in by_priority.items()}


def as_values(plan: Plan, wish: Wish, curve: Curve) -> str:
    """Values for the chart in deploy/helm, to be given to helm by --values."""
    machine = curve.machine
    about = [
        f"{_wished(wish)}, by `sid plan`;",
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
