"""The Dockerfile and docker-compose.yml as data, and the real docker-compose to read the latter."""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
STACK = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = STACK["services"]


def lines(name: str) -> list[str]:
    """Of a file, less comments and empty lines."""
    read = (ROOT / name).read_text().splitlines()
    return [line for line in read if line.strip() and line[0] != "#"]


def _instructions() -> list[tuple[str, str]]:
    """Keyword and rest of each, with continued lines joined."""
    joined = "\n".join(lines("Dockerfile")).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]


DOCKERFILE = _instructions()
# The last stage is the image.
IMAGE = DOCKERFILE[max(i for i, (keyword, _) in enumerate(DOCKERFILE) if keyword == "FROM") :]


def said(keyword: str, stage: list[tuple[str, str]] = IMAGE) -> list[str]:
    return [rest for key, rest in stage if key == keyword]


ENV = dict(pair.split("=", 1) for rest in said("ENV") for pair in shlex.split(rest))
LABELS = dict(pair.split("=", 1) for rest in said("LABEL") for pair in shlex.split(rest))
HEALTHCHECK = json.loads(said("HEALTHCHECK")[0].partition("CMD ")[2])


def docker_compose() -> list[str]:
    """The command: the machine's own, or Debian's package, fetched once into a cache."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            version = [*command, "version", "--short"]
            done = subprocess.run(version, capture_output=True, text=True, check=False)
            if not done.returncode and not done.stdout.startswith("1."):
                return command
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sid-serve"
    program = cache / "docker-compose"
    if not program.exists():
        _fetch(program)
    return [str(program)]


def _fetch(program: Path) -> None:
    """Unpack the package of Debian trixie, of which one file is enough: bookworm's is too old."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        pytest.skip("there is no docker-compose here, nor apt-get to fetch it with")
    listed = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    targets = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.split()
    mirror = next((uri for uri in targets if re.search(r"/debian/?$", uri)), None)
    if mirror is None:
        pytest.skip("there is no docker-compose here, nor a mirror of Debian to fetch it from")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        for folder in ("state/lists/partial", "cache/archives/partial"):
            Path(scratch, folder).mkdir(parents=True)
        sources = Path(scratch, "sources.list")
        keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
        sources.write_text(f"deb [signed-by={keyring}] {mirror} trixie main\n")
        # A configuration of its own: the machine's sources and lists stay as they are.
        apt = ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root"]
        apt += ["-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-"]
        apt += ["-o", f"Dir::State={scratch}/state", "-o", f"Dir::Cache={scratch}/cache"]
        try:
            for step in (
                [*apt, "update", "--error-on=any"],
                [*apt, "download", "docker-compose"],
                ["sh", "-c", "dpkg -x docker-compose_*.deb unpacked"],
            ):
                subprocess.run(
                    step, cwd=scratch, capture_output=True, text=True, check=True, timeout=90
                )
            unpacked = Path(scratch, "unpacked/usr/libexec/docker/cli-plugins/docker-compose")
            unpacked.replace(program)  # whole or not at all, for tests run side by side
        except (subprocess.SubprocessError, OSError) as error:
            why = getattr(error, "stderr", None) or error
            pytest.skip(f"docker-compose cannot be fetched: {why}")
