"""Write docs/reference/ from the code: routes, settings, commands and metrics (`make docs`).

The names of the settings go into the schema of the chart's values (deploy/helm) too, and plans on
the kept service curve into docs/planning.md. Tests fail when what is committed is not what this
writes (tests/test_docs.py, test_chart_values.py).
"""

import html
import json
import re
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from typer.cli import get_docs_for_click
from typer.main import get_command

import distill.cli
import service.cli
import service.server  # and with it all that can refuse a request
from service.app import create_app
from service.exceptions import refusals
from service.http import problems
from service.http.disconnect import ClientLeftError
from service.observability.metrics import Metrics
from service.plan.curve import read_curve
from service.plan.search import Wish, make_plan
from service.settings import Settings

FOLDER = Path(__file__).parent / "reference"
CHART_SCHEMA = Path(__file__).parents[1] / "deploy" / "helm" / "values.schema.json"
PLANNING = Path(__file__).parent / "planning.md"
CURVE = Path(__file__).parent / "planning" / "fashion-2-cores.json"
WISHES = [
    Wish(10_000, 0.2, "poisson", 0.08),
    Wish(10_000, 0.5, "poisson", 0.08),
    Wish(10_000, 0.5, "bursts", 0.08),
]
# Settings that the chart gives by other values or by itself, so that nobody gives them twice.
CHART_DECIDES = {
    *("host", "port", "metrics_port", "models", "keys", "trusted_keys", "triton"),
    *("drain_seconds", "grace_seconds"),
}
ORIGIN = "<!-- Written by `make docs` from {source}; edit that. -->\n\n"


def pages() -> dict[str, str]:
    """Each page of the reference by its file name."""
    return {
        "http.md": http(create_app(Settings()).openapi()),
        "configuration.md": configuration(),
        "commands.md": commands(),
        "metrics.md": metrics(),
    }


def http(document: dict[str, Any]) -> str:
    """Every route, from the OpenAPI document that the server shows at /docs."""
    text = ORIGIN.format(source="service/http/routes/") + (
        "# HTTP reference\n\n"
        "The same to try out, on a running server: `/docs`; for programs: `/openapi.json`.\n"
        "Where the server has API keys, send one as `Authorization: Bearer KEY` or "
        "`X-API-Key: KEY`, to all\nroutes but `/`, `/client`, `/livez`, `/readyz` and `/metrics`. "
        "Every answer carries `X-Request-ID`.\n"
    )
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            text += f"\n## {method.upper()} {path}\n\n"
            text += _paragraphs(route.get("description", route["summary"] + ".")) + "\n"
            text += _parameters(route.get("parameters", []))
            text += _body(route, document)
            text += _answers(route["responses"])
    return text + _schemas(document) + _problems()


def configuration() -> str:
    """Every setting, from its field."""
    text = ORIGIN.format(source="service/settings.py") + (
        "# Configuration reference\n\n"
        "Environment variables of `sid serve` and of all other commands that draw; `--host`, "
        "`--port` and\n`--models` go before theirs. A value that makes no sense ends the start "
        "with one line,\nand so does, for `sid serve` and `sid triton`, a variable `SID_*` that is "
        "no setting.\n"
    )
    for name, field in Settings.model_fields.items():
        default = "none" if field.default is None else f"`{field.default}`"
        bounds = [
            f"{word} {getattr(rule, sign)}"
            for rule in field.metadata
            for sign, word in (("ge", "at least"), ("gt", "above"), ("le", "at most"))
            if hasattr(rule, sign)
        ]
        kind = ", ".join([_type_name(field.annotation), *bounds])
        text += f"\n## SID_{name.upper()}\n\n{kind}. Default: {default}.\n\n{field.description}\n"
    return text


def commands() -> str:
    """Every command and option, from the command lines."""
    text = ORIGIN.format(source="service/commands/ and distill/commands/") + "# Command reference\n"
    for name, app in (("sid", service.cli.app), ("sid-distill", distill.cli.app)):
        command = get_command(app)
        with command.make_context(name, [], resilient_parsing=True) as context:
            said = get_docs_for_click(obj=command, ctx=context, name=name)
        lines = [line.rstrip() for line in html.unescape(said).splitlines()]
        text += "\n" + "\n".join(f"#{line}" if line.startswith("#") else line for line in lines)
    return text.rstrip() + "\n"


def metrics() -> str:
    """Every metric of our own, from the registry."""
    text = ORIGIN.format(source="service/observability/metrics.py") + (
        "# Metrics reference\n\n"
        "What `GET /metrics` shows to Prometheus, beside the usual `process_*`. A histogram has "
        "`_bucket`, `_sum`\nand `_count`. What they mean when they move: "
        "[operations.md](../operations.md).\n\n"
        "| metric | type | labels | what |\n|---|---|---|---|\n"
    )
    for metric in vars(Metrics()).values():
        if hasattr(metric, "_labelnames"):
            (family,) = metric.describe()
            labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "-"
            name = family.name + ("_total" if family.type == "counter" else "")
            text += f"| `{name}` | {family.type} | {labels} | {family.documentation} |\n"
    return text


def chart_schema() -> str:
    """The schema of the chart's values, with the settings that there are now."""
    schema = json.loads(CHART_SCHEMA.read_text(encoding="utf-8"))
    names = sorted(f"SID_{name.upper()}" for name in {*Settings.model_fields} - CHART_DECIDES)
    settings = schema["properties"]["gateway"]["properties"]["settings"]
    settings["properties"] = {name: {"type": "string"} for name in names}
    return json.dumps(schema, indent=2) + "\n"


def planning() -> str:
    """The page about planning, with the plans that the kept curve gives now."""
    curve = read_curve(CURVE)
    text = (
        f"Measured on {curve.date:%Y-%m-%d} on {curve.machine.cores} cores of an "
        f"{curve.machine.processor}, of `{curve.bundle}`\nby {curve.engine.name} "
        f"{curve.engine.version}. The machine's load before it was {curve.machine.load:g}: a curve "
        "of an idle one has 0, and\nof a busy one more machines than are needed.\n\n"
        "| arrivals, p99 wanted | machines | batches at a time, largest | queue | p50, p99 "
        "| slots busy | of the peak | a million images |\n|---|---|---|---|---|---|---|---|\n"
    )
    for wish in WISHES:
        plan = make_plan(curve, wish)
        text += (
            f"| {wish.shape}, {wish.p99 * 1000:.0f} ms | {plan.replicas} "
            f"| {plan.concurrency}, {plan.max_batch_size} | {plan.queue_size} "
            f"| {plan.p50 * 1000:.0f}, {plan.p99 * 1000:.0f} ms | {plan.utilisation:.0%} "
            f"| {plan.load:.0%} | {plan.per_million:.3f} |\n"
        )
    page = PLANNING.read_text(encoding="utf-8")
    between = r"(?<=docs/generate\.py\. -->\n).*(?=<!-- end -->)"
    return re.sub(between, lambda _: f"\n{text}\n", page, flags=re.DOTALL)


def _paragraphs(docstring: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in docstring.split("\n\n"))


def _parameters(parameters: list[dict[str, Any]]) -> str:
    if not parameters:
        return ""
    text = "\n| parameter | where | what |\n|---|---|---|\n"
    for one in parameters:
        must = ", required" if one["required"] else ""
        what = one.get("description") or one["schema"].get("description", "")
        text += f"| `{one['name']}` | {one['in']}{must} | {_kind(one['schema'])}. {what} |\n"
    return text


def _body(route: dict[str, Any], document: dict[str, Any]) -> str:
    content = route.get("requestBody", {}).get("content", {})
    if "application/json" not in content:
        return ""
    schema = content["application/json"]["schema"]
    name = next(part["$ref"] for part in (schema, *schema.get("anyOf", ())) if "$ref" in part)
    return f"\nThe body, in JSON:\n\n{_fields(document, name.rsplit('/', 1)[-1])}"


def _fields(document: dict[str, Any], name: str) -> str:
    schema = document["components"]["schemas"][name]
    text = "| field | what |\n|---|---|\n"
    for field, its in schema["properties"].items():
        must = " **Required.**" if field in schema.get("required", ()) else ""
        text += f"| `{field}` | {_kind(its)}.{must} {its.get('description', '')}".rstrip() + " |\n"
    return text


def _answers(responses: dict[str, Any]) -> str:
    text, failures = "\n", []
    for status, answer in responses.items():
        content = answer.get("content", {})
        if problems.PROBLEM in content:
            failures.append(status)
            continue
        forms = [
            f"{_kind(its['schema'])} as `{form}`" if "$ref" in its["schema"] else f"`{form}`"
            for form, its in content.items()
        ]
        said = answer["description"].rstrip(".").replace("Successful Response", "")
        text += f"- {status}: {'; '.join(part for part in (said, ', '.join(forms)) if part)}\n"
    return text + (f"- [errors](#errors): {', '.join(failures)}\n" if failures else "")


def _schemas(document: dict[str, Any]) -> str:
    text = "\n## What answers hold\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        if "properties" in schema and "Request" not in name and not name.startswith("HTTP"):
            text += f"\n### {name}\n\n{_paragraphs(schema.get('description', ''))}\n\n"
            text += _fields(document, name)
    return text


def _problems() -> str:
    text = (
        "\n## Errors\n\n"
        "Every error is an `application/problem+json` (RFC 9457). Its `type` is "
        "`urn:sid-serve:problem:KIND`,\nits `detail` says what was wrong, what was expected and "
        "what to do. 429 and 503 carry `Retry-After`.\nBelow `/v1/` a member `error` says the "
        "same in OpenAI's words.\n\n"
        "| status | kind |\n|---|---|\n"
    )
    known = {(refusal.status, refusal.kind) for refusal in refusals()}
    known.remove((ClientLeftError.status, ClientLeftError.kind))  # nobody gets to read it
    return text + "".join(f"| {status} | `{kind}` |\n" for status, kind in sorted(known))


def _kind(schema: dict[str, Any]) -> str:
    """A schema's type, in few words."""
    if "$ref" in schema:
        return (
            f"[{schema['$ref'].rsplit('/', 1)[-1]}](#{schema['$ref'].rsplit('/', 1)[-1].lower()})"
        )
    if choices := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(dict.fromkeys(_kind(part) for part in choices))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: " + ", ".join(
            _kind(part) for part in schema["prefixItems"]
        )
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    return str(schema.get("type", "anything"))


def _type_name(kind: Any) -> str:
    """A setting's type, in words."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_type_name(part) for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    names = {int: "Whole number", float: "Number", str: "Text", Path: "Path", bool: "Yes or no"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    CHART_SCHEMA.write_text(chart_schema(), encoding="utf-8")
    PLANNING.write_text(planning(), encoding="utf-8")


if __name__ == "__main__":
    main()
