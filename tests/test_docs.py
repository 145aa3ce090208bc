"""README and docs say what is true: links lead somewhere, commands and options exist."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

import distill.cli
import service.cli
from docs import generate
from service.app import create_app
from service.settings import Settings
from tests.bundles import write_bundle
from tests.service.client import Client

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = ROOT / "docs" / "reference"
COMMANDS = {
    "sid": get_command(service.cli.app).commands,
    "sid-distill": get_command(distill.cli.app).commands,
}


def named(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def anchors(page):
    """The fragments that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_to_a_part_of_a_page_leads_to_a_heading(page):
    for target, fragment in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert fragment in anchors(page.parent / target if target else page), fragment


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_option_exists(page):
    text = page.read_text().replace("\\\n", " ")
    for program, name, rest in re.findall(
        r"(?:^|[\s`/])(sid-distill|sid) +([a-z]+)\b([^\n`']*)", text
    ):
        if name not in COMMANDS[program]:
            raise AssertionError(f"{program} has no command {name}")
        known = {flag for p in COMMANDS[program][name].params for flag in (*p.opts, "--help")}
        for flag in re.findall(r"(?<=\s)(--?[a-z][a-z0-9-]*)", rest):
            assert flag in known, f"{program} {name} {flag}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "tests/compare/README.md"], ids=named)
def test_a_command_to_type_is_named_by_its_path(page):
    """Nobody is told to activate the environment; `sid serve` alone names the command."""
    if page.parent == REFERENCE or page == ROOT / "docs" / "design.md":  # say what there is
        return
    text = re.sub(
        r"`{3}.*?\n(.*?)`{3}", lambda block: _indented(block[1]), page.read_text(), flags=re.S
    )
    lines = re.findall(r"^ {4,}(.+)$", text, re.MULTILINE)
    programs = r"(?:sid|sid-distill) [a-z]+|tensorboard|pytest|torchrun"
    for code in [*lines, *re.findall(r"`([^`]+)`", text)]:
        bare = re.search(rf"(?:^|[;&|(] *|\w=\S+ )({programs}) [-\w.{{/]", code)
        assert bare is None, f"{code}: say .venv/bin/{bare[1]}"


def _indented(block: str) -> str:
    return "".join(f"    {line}\n" for line in block.splitlines())


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert target in targets, target


def test_nothing_promises_to_install_the_package_from_an_index():
    """It is on none: `how_to_install` says what works."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.rstrip("\0").split("\0"):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".js", ".html", ".yml", ".sh", ""} and path.is_file():
            promise = re.search(r"pip install[^\n]*sid-serve|'sid-serve\[", _text(path))
            assert promise is None or path == Path(__file__), f"{name}: {promise[0]}"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for page in PAGES:
        for extra in re.findall(r"'\.\[([\w,]+)\]'|EXTRAS=([\w,]+)", page.read_text()):
            assert set("".join(extra).split(",")) <= set(extras["optional-dependencies"]), page


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


@pytest.mark.parametrize("name", ["http.md", "configuration.md", "commands.md", "metrics.md"])
def test_the_reference_is_what_the_code_says_now(name):
    assert (REFERENCE / name).read_text() == generate.pages()[name], "run `make docs`"


@pytest.mark.long
def test_the_plans_of_the_page_are_what_the_kept_curve_gives_now():
    assert generate.PLANNING.read_text() == generate.planning(), "run `make docs`"


def test_every_route_is_documented():
    app = create_app(Settings())
    text = (REFERENCE / "http.md").read_text()
    routes = [(m.upper(), path) for path, ms in app.openapi()["paths"].items() for m in ms]
    assert ("POST", "/generate") in routes
    for method, path in routes:
        assert f"## {method} {path}\n" in text
    # For people and not for programs: the playground, and the reference to try out.
    others = {route.path for route in app.routes if hasattr(route, "path")}
    assert {one for one in others if not one.startswith("/swagger/")} == {
        "/",
        "/docs",
        "/openapi.json",
        "/playground",
    }


def test_every_setting_and_command_is_documented():
    for name in Settings.model_fields:
        assert f"## SID_{name.upper()}\n" in (REFERENCE / "configuration.md").read_text()
    text = (REFERENCE / "commands.md").read_text()
    for program, commands in COMMANDS.items():
        for name, command in commands.items():
            part = text.split(f"### `{program} {name}`\n")[1].split("\n### ")[0]
            for parameter in command.params:
                assert any(flag in part for flag in (*parameter.opts, parameter.name.upper()))


def test_every_metric_is_documented(tmp_path):
    write_bundle(tmp_path)
    with Client(create_app(Settings(models=tmp_path))) as client:
        client.generate({"seed": 1})
        shown = client.get("/metrics").text
    text = (REFERENCE / "metrics.md").read_text()
    names = set(re.findall(r"^# TYPE (sid_\w+) ", shown, re.MULTILINE))
    assert len(names) > 10
    for name in names:
        assert f"| `{name}` |" in text
