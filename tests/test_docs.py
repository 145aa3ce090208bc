"""README and docs say what is true: links lead somewhere, commands and options exist."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

import distill.cli
import service.cli

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_and_option_exists(page):
    text = page.read_text().replace("\\\n", " ")
    for program, name, rest in re.findall(
        r"(?:^|[\s`/])(sid-distill|sid) +([a-z]+)\b([^\n`']*)", text
    ):
        if name not in COMMANDS[program]:
            raise AssertionError(f"{program} has no command {name}")
        known = {flag for p in COMMANDS[program][name].params for flag in (*p.opts, "--help")}
        for flag in re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", rest):
            assert flag in known, f"{program} {name} {flag}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert target in targets, target
