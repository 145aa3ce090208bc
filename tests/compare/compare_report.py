"""What the rounds of compare.py say: medians, ratios and tables."""

import statistics
from typing import Any

BARE = "bare"
COLUMNS = {
    "images_per_s": "images/s",
    "images_per_cpu_s": "images/CPU s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "cpu_idle_pct": "CPU idle %",
    "cpu_server_pct": "server CPU %",
    "cpu_load_pct": "load CPU %",
    "cpu_other_pct": "other CPU %",
    "rss_mib": "RSS MiB",
    "pss_mib": "PSS MiB",
    "errors": "errors",
}

Result = dict[str, Any]


def summarise(rounds: list[Result], names: list[str], baseline: str, loads: list[int]) -> Result:
    """Medians over rounds, and the baseline's rate over each other's within each round."""
    summary: Result = {}
    for name in names:
        mine = [done["servers"][name] for done in rounds if name in done["servers"]]
        summary[name] = {}
        for load in map(str, loads):
            values = [result["loads"][load] for result in mine]
            medians = {key: _median([v[key] for v in values]) for key in COLUMNS}
            medians["errors"] = sum(v["errors"] for v in values) if values else None
            ratios = [
                done["servers"][baseline]["loads"][load]["images_per_s"] / rate
                for done in rounds
                if {name, baseline} <= done["servers"].keys()
                and (rate := done["servers"][name]["loads"][load]["images_per_s"])
            ]
            medians["baseline_ratio"] = _median(ratios)
            medians["baseline_ratios"] = [round(ratio, 3) for ratio in ratios]
            bare = [
                done["servers"][name]["loads"][load]["images_per_s"]
                / done[BARE]["images_per_s_best"]
                for done in rounds
                if name in done["servers"] and BARE in done
            ]
            medians["share_of_bare"] = _median(bare)
            summary[name][load] = medians
    return summary


def markdown(document: Result) -> str:
    """The summary as a table for each load."""
    baseline = document["baseline"]
    head = ["server", *COLUMNS.values(), f"{baseline} is x times", "share of bare loop"]
    lines = []
    for load in map(str, document["settings"]["connections"]):
        lines += [f"### {load} connections", "", f"| {' | '.join(head)} |"]
        lines.append(f"|---|{'---:|' * (len(head) - 1)}")
        for name, by_load in document["medians"].items():
            row = by_load[load]
            keys = [*COLUMNS, "baseline_ratio", "share_of_bare"]
            cells = ["-" if row[key] is None else f"{row[key]:.4g}" for key in keys]
            lines.append(f"| {' | '.join([name, *cells])} |")
        lines.append("")
    if document["bare"]:
        lines += [
            "### Bare ONNX Runtime loop",
            "",
            "| way | best batch | images/s |",
            "|---|---:|---:|",
        ]
        for way, (batch, rate) in document["bare"].items():
            lines.append(f"| {way} | {batch} | {rate:.4g} |")
    failures = [name for done in document["rounds"] for name in done.get("failures", {})]
    if failures:
        lines += ["", f"Failed in a round, which then does not count: {', '.join(failures)}."]
    return "\n".join(lines)


def summarise_bare(rounds: list[Result]) -> Result:
    """By way: the batch size with the best median over rounds, and that median."""
    tables = [done[BARE]["images_per_s"] for done in rounds if BARE in done]
    if not tables:
        return {}
    medians = {
        way: {size: _median([table[way][size] for table in tables]) for size in tables[0][way]}
        for way in tables[0]
    }
    return {way: max(by_size.items(), key=lambda item: item[1]) for way, by_size in medians.items()}


def _median(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 4) if known else None
