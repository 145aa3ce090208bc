"""Collects what a bare machine lacks, for its Python: a folder to put on its PYTHONPATH."""

import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

WANTED = (
    "fastapi", "fastapi-swagger", "httptools", "httpx", "hypothesis", "onnxscript", "orjson",
    "pillow", "prometheus-client", "pydantic", "pydantic-settings", "pytest", "pytest-timeout",
    "rich", "safetensors", "structlog", "tqdm", "typer", "uvicorn", "uvloop",
)  # fmt: skip
# Not onnxruntime-gpu: it is larger than all the others together. Name it to pip in the same way.
THERE_ALREADY = ("ml-dtypes", "numpy", "onnx", "protobuf", "sympy", "torch")


def carry(folder: Path, python: str) -> None:
    """Install them, in the versions that are installed here, for Linux on x86-64 and `python`.

    Ends the program with pip's own message where that fails.
    """
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "--upgrade",
        "--no-deps", "--no-compile", "--only-binary=:all:", "--python-version", python,
        "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64",
    ]  # fmt: skip
    pinned = [f"{name}=={version(name)}" for name in with_requirements(WANTED)]
    if status := subprocess.run([*command, *pinned]).returncode:
        sys.exit(status)
    name_the_checkout(folder)
    print(f"on the other machine: PYTHONPATH={folder} python -m tests.gpu")


def name_the_checkout(folder: Path) -> None:
    """Say there which version the checkout is of: it is not installed, and the gateway asks."""
    metadata = folder / f"sid_serve-{version('sid-serve')}.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    lines = ("Metadata-Version: 2.1", "Name: sid-serve", f"Version: {version('sid-serve')}")
    metadata.write_text("\n".join(lines) + "\n")


def with_requirements(names: tuple[str, ...]) -> list[str]:
    """The packages and all that they require, but for what is there already; sorted."""
    found: set[str] = set()
    left = [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found or name in THERE_ALREADY:
            continue
        found.add(name)
        for text in requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(canonicalize_name(requirement.name))
    return sorted(found)
