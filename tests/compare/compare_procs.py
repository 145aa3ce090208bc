"""What a server costs, and its end: the processes below this one, read from /proc (Linux)."""

import ctypes
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")
_INTERVAL = 0.1


def adopt_orphans() -> None:
    """Become the parent of processes whose own parent has died, so that none escapes."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def below(root: int, without: int | None = None) -> set[int]:
    """Every process below `root`, leaving out `without` and what is below that."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child != without:
                found.add(child)
                waiting.append(child)
    return found


def memory(pids: set[int]) -> dict[str, float]:
    """MiB of all: RSS counts a page shared by n processes n times, PSS once."""
    totals = {"Rss": 0, "Pss": 0}
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue  # it ended, or is a zombie
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name in totals:
                totals[name] += int(value.split()[0])
    return {"rss_mib": round(totals["Rss"] / 1024, 1), "pss_mib": round(totals["Pss"] / 1024, 1)}


class Watch:
    """Samples processor time while a load generator runs.

    Args:
        load: the process of the load generator; all else below this process is the server's.
    """

    def __init__(self, load: subprocess.Popen[Any]) -> None:
        self._load = load.pid
        self._samples: list[tuple[float, float, float, float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def finish(self, seconds: float) -> dict[str, float]:
        """Shares of all processors, in %, over the middle of the last `seconds`.

        The middle, because the generator starts up before them and writes its report after.
        `other` is what neither server nor generator used: were it large, distrust the figures.
        """
        self._stop.set()
        self._thread.join()
        end = self._samples[-1][0]
        window = [s for s in self._samples if end - 0.9 * seconds <= s[0] <= end - 0.1 * seconds]
        if len(window) < 2:
            window = self._samples
        _, total, idle, server, load = (b - a for a, b in zip(window[0], window[-1], strict=True))
        total = max(total, 1)
        shares = {"idle": idle, "server": server, "load": load}
        shares["other"] = max(0, total - sum(shares.values()))
        return {f"cpu_{name}_pct": round(100 * part / total, 1) for name, part in shares.items()}

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL):
            fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
            ticks = [int(field) for field in fields[1:9]]
            server = sum(map(_ticks, below(os.getpid(), without=self._load)))
            load = _ticks(self._load)
            self._samples.append((time.monotonic(), sum(ticks), ticks[3] + ticks[4], server, load))


def end(server: subprocess.Popen[Any], stop: signal.Signals, patience: float = 20) -> int:
    """Stop a server and whatever it leaves behind; returns how many had to be killed."""
    server.send_signal(stop)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and below(os.getpid()):
        server.poll()
        _reap(server.pid)
        time.sleep(0.1)
    left = below(os.getpid())
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    server.wait()
    while below(os.getpid()):
        _reap(server.pid)
        time.sleep(0.05)
    return len(left)


def _reap(keep: int) -> None:
    """Bury adopted orphans; `keep` is Popen's to wait for."""
    for pid in below(os.getpid()) - {keep}:
        stat = _stat(pid)
        if stat and stat[0] == "Z" and int(stat[1]) == os.getpid():
            os.waitpid(pid, os.WNOHANG)


def _ticks(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[11]) + int(stat[12]) if stat else 0


def _stat(pid: int) -> list[str] | None:
    """/proc/pid/stat from the third field on (state, parent, ...); the name may hold blanks."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
