"""How many threads compute and how they wait for each other; to be said before torch is loaded."""

# service/resources.py reads control groups too. This half imports the bundle alone of that one, and
# what a machine allows is no part of a bundle: so each half looks for itself.

import math
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

# Turns of libgomp's waiting loop, after which a thread sleeps: some 0.03 ms, enough from one small
# operation to the next (docs/results.md). Its own 300,000 hold the processor for milliseconds.
SPIN_TURNS = "3000"

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def share_processors(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have OpenMP's threads leave the processors to others while they wait.

    Beside other work on the same processors, threads that turn in a loop hold those that they
    wait for off the processor, and training crawls. And of a container's share of a large machine
    only as many threads are started as it is. What the environment says already stays.

    It rules what is loaded later, so call it before torch is imported.
    """
    waiting = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    if not any(name in environment for name in waiting):
        # LLVM's and Intel's OpenMP know the first, GNU's (torch's own on Linux) both.
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
        environment["GOMP_SPINCOUNT"] = SPIN_TURNS
    counted = any(name in environment for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    if not counted and (count := available_cpus()) < _processors():
        environment["OMP_NUM_THREADS"] = str(count)


def available_cpus() -> int:
    """Processors this process may use: its affinity, or its control groups' limit if less."""
    limit = cpu_limit()
    return _processors() if limit is None else max(1, min(_processors(), math.floor(limit)))


def cpu_limit(groups: Path = _GROUPS, own_groups: Path = _OWN_GROUPS) -> float | None:
    """Processors that this process's control groups let it have, of all their levels the least.

    Both versions of control groups, nested or not; None where none of them limits.

    Args:
        groups: where the control groups are mounted.
        own_groups: the file that says which this process is in.
    """
    limits = [limit for folder in _folders(groups, own_groups) for limit in _limits(folder)]
    return min(limits, default=None)


def _folders(groups: Path, own_groups: Path) -> Iterator[Path]:
    """The folders of this process's control groups that may limit its processors, and above."""
    try:
        lines = own_groups.read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 has no names of controllers; a mixed system mounts it in "unified".
        mounts = [groups / controllers, groups / "cpu"] if controllers else [groups]
        mounts += [] if controllers else [groups / "unified"]
        for mount in mounts:
            place = mount / path.lstrip("/")
            yield place
            # In a container `path` may be the host's and not be there: its mount still is.
            yield from (above for above in place.parents if above.is_relative_to(mount))


def _limits(folder: Path) -> Iterator[float]:
    """What one control group says, in version 2 or in version 1."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = (folder / "cpu.cfs_quota_us").read_text()
        if int(quota) > 0:  # -1: no limit
            yield int(quota) / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        pass


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1
