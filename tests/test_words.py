"""One name for one thing: the words that were given up stay out of code, file names and docs.

A reader of another field's code should find the terms of that field here. Each row says which
word is meant instead. What the outside knows by an old word (an option, a file's key, a metric)
keeps it, and is listed in OUTSIDE.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Of any name in Python, between underscores: what is meant by it.
PARTS = {
    "picture": "image",
    "pictures": "images",
    "detector": "extractor",
    "detectors": "extractors",
    "telemetry": "metrics",
    "order": "job",
    "orders": "jobs",
    "lean": "fast",
}
# Where a part is another word's: "order" is that of classes or rows in distill.
PARTS_ELSEWHERE = {
    "order": ("service/serving/", "service/http/routes/", "service/bulk/"),
    "orders": ("service/serving/", "service/http/routes/", "service/bulk/"),
    "detector": ("distill/", "tests/distill/"),
    "detectors": ("distill/", "tests/distill/"),
    "lean": ("service/",),
}
# Whole names, in all of Python and between backticks in docs.
NAMES = {
    "Order": "ImageJob",
    "Picture": "ImageResult, GeneratedImage",
    "Terms": "CallOptions",
    "LeanRoute": "FastRoute",
    "Telemetry": "Metrics",
    "flights": "in_flight",
    "flying": "is_running",
    "enlist": "register",
    "retire": "unregister",
    "give_up": "abort",
    "_lose": "_record_lost",
    "_suspect": "_mark_suspect",
    "_mend": "_recover",
    "_works": "_probe",
    "PORTABLE": "BASELINE",
    "Truth": "ReferenceImages",
    "Bounds": "Tolerance",
    "Detector": "FeatureExtractor",
    "Observed": "FeatureStats",
    "Facts": "NetworkMetadata",
    "descend": "optimizer_step",
    "whole_weights": "full_state_dict",
    "share_of_batch": "local_microbatches",
    "seed_draws": "seed_rng",
    "World": "DistributedContext",
    "join_world": "join_process_group",
    "building_site": "build_device",
    "in_a_row": "consecutive_skips",
}
# Variables that say that something was done, and not what they hold.
VARIABLES = {"told", "said", "own", "found", "made", "asked"}
# "images_a_call": per, never a. A sentence, as a test's name is one, may say "a".
RATE = re.compile(r"[a-z]{2,}s_a_[a-z]+$", re.IGNORECASE)
FILES = {
    "refusals": "exceptions",
    "answers": "responses",
    "drawing": "pipeline",
    "lean": "fast_route",
    "telemetry": "metrics",
    "orders": "jobs",
    "detector": "feature_extractor",
    "observed": "feature_stats",
    "facts": "metadata",
}
# In sentences: comments, docstrings, messages and docs.
PROSE = {
    r"pictures?": "image",
    r"feature networks?": "feature extractor",
}
OUTSIDE = re.compile(
    r"pictures\.example|picture\.png|--pictures\b|client\.Picture|\"Picture\"|Picture, which"
)


@cache
def tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    ours = ("service/", "distill/", "tests/", "docs/", "deploy/", "README.md")
    return [
        name
        for name in listed
        if name.startswith(ours) and name != "tests/test_words.py" and (ROOT / name).is_file()
    ]


def names_of(path: str) -> Iterator[tuple[int, str, bool]]:
    """Line, name, and whether it names a test, which is a sentence."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id, False
        elif isinstance(node, ast.Attribute):
            if not OUTSIDE.search(ast.unparse(node)):
                yield node.lineno, node.attr, False
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.lineno, node.arg, False
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name, node.name.startswith("test_")


def python() -> list[str]:
    return [name for name in tracked() if name.endswith(".py")]


def test_no_name_says_it_in_the_old_words():
    wrong = []
    for path in python():
        for line, name, is_sentence in names_of(path):
            where = f"{path}:{line}: {name}"
            if name in NAMES:
                wrong.append(f"{where}: say {NAMES[name]}")
            for part in name.lower().split("_"):
                prefixes = PARTS_ELSEWHERE.get(part, ("",))
                if part in PARTS and path.startswith(prefixes) and not is_sentence:
                    wrong.append(f"{where}: say {PARTS[part]}")
            if RATE.search(name) and not is_sentence:
                wrong.append(f"{where}: say per")
    assert not wrong, "\n".join(wrong)


def test_a_variable_says_what_it_holds():
    wrong = [
        f"{path}:{node.lineno}: {name}"
        for path in python()
        if path.startswith(("service/", "distill/"))
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.arg | ast.Name)
        and (name := node.arg if isinstance(node, ast.arg) else node.id) in VARIABLES
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_called_by_an_old_word():
    wrong = [
        f"{name}: say {FILES[stem]}"
        for name in python()
        if name.startswith(("service/", "distill/")) and (stem := Path(name).stem) in FILES
    ]
    wrong += [name for name in python() if "picture" in name]
    assert not wrong, "\n".join(wrong)


def test_no_sentence_uses_an_old_word():
    wrong = []
    for path in tracked():
        if not path.endswith((".py", ".md", ".yml", ".html", ".js", ".toml", ".json")):
            continue
        text = OUTSIDE.sub("", (ROOT / path).read_text())
        for number, line in enumerate(text.splitlines(), start=1):
            wrong += [
                f"{path}:{number}: {found[0]}: say {right}"
                for pattern, right in PROSE.items()
                for found in re.finditer(rf"\b{pattern}\b", line, re.IGNORECASE)
            ]
            if path.endswith(".md"):
                wrong += [
                    f"{path}:{number}: {name}: say {NAMES[name]}"
                    for name in re.findall(r"`(\w+)[`.(]", line)
                    if name in NAMES
                ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["images_a_call", "_BATCHES_A_SERVER"])
def test_a_rate_is_recognised(name):
    assert RATE.search(name)
    assert not RATE.search("batches_at_a_time")
