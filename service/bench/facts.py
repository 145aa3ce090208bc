"""The JSON file: every report, and what somebody else needs to measure the same."""

import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.bench.report import Report
from service.bench.target import Target

_CPUINFO = Path("/proc/cpuinfo")
_SECRET = re.compile(r"(?i)^([\w=-]*(?:auth|cookie|key|secret|token)[\w-]*:).*", re.DOTALL)


def document(reports: Sequence[Report], target: Target) -> dict[str, Any]:
    """The reports with the machine, date and command, ready for JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(sys.argv),
        "machine": machine(),
        "target": {"url": target.url, "body": target.body},
        "reports": [report.as_dict() for report in reports],
    }


def machine() -> dict[str, Any]:
    """What the figures depend on besides the server."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return {
        "cpus": len(affinity(0)) if affinity else os.cpu_count(),
        "processor": _processor(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "sid_serve": version("sid-serve"),
    }


def command_line(arguments: Sequence[str]) -> str:
    """The command as one can type it, without keys: results are committed and shown."""
    program, *rest = arguments
    return shlex.join([Path(program).name, *(_SECRET.sub(r"\1 ***", word) for word in rest)])


def _processor() -> str:
    try:
        text = _CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()
