"""Processors and memory that this process may use: the machine's, or less where a limit is set.

Containers, systemd and batch systems set limits by control groups. A group may lie in others, each
with its own limit, and the smallest on the way to the root is the one that counts. There are two
versions of control groups; a machine may have both at a time, for different resources.

Source: the kernel's Documentation, admin-guide/cgroup-v1 and admin-guide/cgroup-v2.rst; man 5
proc_pid_mountinfo.
"""

# distill/threads.py reads control groups too, and says why the two halves do not share this.

import math
import os
import re
from collections.abc import Iterator
from itertools import accumulate
from operator import truediv
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def available_cpus(root: Path = _ROOT) -> int:
    """Processors this process may use: its affinity, or its groups' smallest quota if less.

    `os.cpu_count` counts the machine's, and as many threads as that on a small share of a
    large machine only get in each other's way.

    Args:
        root: where /proc and /sys are.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [math.floor(quota) for quota in _cpu_quotas(root)]
    return max(1, min([cpus, *quotas]))


def available_memory(root: Path = _ROOT) -> int:
    """Bytes this process may use: the machine's memory, or its groups' smallest limit if less.

    Args:
        root: where /proc and /sys are.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_memory_limits(root)])


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Processors' worth of time that each group allows, where it has a quota."""
    for folder in _groups(root, "cpu"):
        quota, period = _numbers(folder / "cpu.max", 2)  # version 2
        if period is None:
            (quota,) = _numbers(folder / "cpu.cfs_quota_us", 1)
            (period,) = _numbers(folder / "cpu.cfs_period_us", 1)
        if quota and period:
            yield quota / period


def _memory_limits(root: Path) -> Iterator[int]:
    """Bytes that each group allows, where it has a limit."""
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            (limit,) = _numbers(folder / name, 1)
            if limit:
                yield limit


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in, and of those that hold them."""
    mounts = list(_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)  # no controllers: version 2
        if controllers and controller not in controllers.split(","):
            continue
        for holds, top, folder in mounts:
            if controllers == holds == "" or (controllers and controller in holds.split(",")):
                yield from accumulate(_below(top, group), truediv, initial=folder)


def _mounts(root: Path) -> Iterator[tuple[str, str, Path]]:
    """Of each mount of control groups its controllers, the group at its top, and its folder.

    The controllers of version 2 are "": they are all there.
    """
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        top, place = (_unescaped(field) for field in before.split(" ")[3:5])
        kind, *_, options = after.split(" ")
        if kind in ("cgroup", "cgroup2"):
            yield options if kind == "cgroup" else "", top, root / place.lstrip("/")


def _below(top: str, group: str) -> tuple[str, ...]:
    """A group's path below the one that is mounted; none where it lies elsewhere.

    A container that sees the machine's groups by their names has its own mounted at the top.
    """
    path, mounted = PurePosixPath(group), PurePosixPath(top)
    if ".." in path.parts or not path.is_relative_to(mounted):
        return ()
    return path.relative_to(mounted).parts


def _numbers(file: Path, count: int) -> list[int | None]:
    """The whole numbers of a file; None for what is none ("max"), or cannot be read."""
    try:
        words = file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        words = []
    words = [*words, *[""] * count][:count]
    return [int(word) if re.fullmatch(r"[0-9]+", word) else None for word in words]


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # no Linux, or nothing that tells
        return []
    # Not `splitlines`: the kernel leaves whatever else that takes for an end of line in names.
    return text.removesuffix("\n").split("\n") if text else []


def _unescaped(field: str) -> str:
    """A field of mountinfo, where blanks and the like are octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
