"""Threads that wait leave the processors to others, and no more are started than we may use."""

import os
import subprocess
import sys

import pytest

from distill.threads import SPIN_TURNS, cpu_limit, share_processors

TOLD = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPIN_TURNS}


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(content)


@pytest.mark.parametrize(
    ("own", "groups", "limit"),
    [
        ("0::/", {"": {"cpu_max": "150000 100000\n"}}, 1.5),
        ("0::/", {"": {"cpu_max": "max 100000\n"}}, None),
        ("0::/a/b", {"a": {"cpu_max": "200000 100000"}, "a/b": {"cpu_max": "max 100000"}}, 2),
        ("0::/a/b", {"a": {"cpu_max": "200000 100000"}, "a/b": {"cpu_max": "400000 100000"}}, 2),
        ("0::/not/in/this/container", {"": {"cpu_max": "50000 100000"}}, 0.5),
        (
            "5:cpuset:/\n3:cpu,cpuacct:/docker/x\n0::/",
            {"cpu,cpuacct/docker/x": {"cpu_cfs_quota_us": "300000", "cpu_cfs_period_us": "100000"}},
            3,
        ),
        (
            "3:cpu,cpuacct:/docker/x",
            {"cpu": {"cpu_cfs_quota_us": "300000\n", "cpu_cfs_period_us": "100000\n"}},
            3,
        ),
        ("1:cpu:/", {"cpu": {"cpu_cfs_quota_us": "-1", "cpu_cfs_period_us": "100000"}}, None),
        ("1:cpu:/\n0::/", {"unified": {"cpu_max": "100000 100000"}}, 1),
        ("", {}, None),
        ("0::/", {"": {"cpu_max": "nonsense"}}, None),
    ],
)
def test_the_limit_of_control_groups(own, groups, limit, tmp_path):
    (tmp_path / "own").write_text(own)
    for folder, files in groups.items():
        group(tmp_path / "groups" / folder, **files)
    assert cpu_limit(tmp_path / "groups", tmp_path / "own") == limit


@pytest.mark.parametrize(
    ("before", "limit", "after"),
    [
        ({}, None, TOLD),
        ({}, 0.5, TOLD | {"OMP_NUM_THREADS": "1"}),
        ({}, 5.9, TOLD | {"OMP_NUM_THREADS": "5"}),
        ({}, 8, TOLD),  # no less than there are: torch's own choice stands
        ({"OMP_NUM_THREADS": "3"}, 2, TOLD | {"OMP_NUM_THREADS": "3"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, None, {"GOMP_SPINCOUNT": "7"}),
        ({"KMP_BLOCKTIME": "200"}, None, {"KMP_BLOCKTIME": "200"}),
    ],
)
def test_what_the_user_said_stays(before, limit, after, monkeypatch):
    monkeypatch.setattr("distill.threads.cpu_limit", lambda: limit)
    monkeypatch.setattr("distill.threads._processors", lambda: 8)
    environment = dict(before)
    share_processors(environment)
    assert environment == after


PROBE = """
import distill.cli, os, sys
assert "torch" not in sys.modules, "OpenMP has read its settings before they are made"
def command():
    import torch
    print(os.environ["GOMP_SPINCOUNT"], os.environ["OMP_WAIT_POLICY"])
distill.cli.app = command
distill.cli.main()
"""


def test_the_command_line_says_so_before_torch_is_loaded():
    ours = {*TOLD, "KMP_BLOCKTIME"}
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.stdout == f"{SPIN_TURNS} PASSIVE\n", done.stderr
