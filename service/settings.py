"""Every knob of the server. Each is also an environment variable: SID_PORT, SID_MODELS, ..."""

import math
import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

_CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")


def available_cpus() -> int:
    """Processors this process may use: its affinity, or its container's quota if that is less.

    `os.cpu_count` counts the machine's, and as many threads as that on a small share of a
    large machine only get in each other's way.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = _CGROUP_CPU.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.floor(int(quota) / int(period))))


class Settings(BaseSettings):
    """Settings of the server, from the command line, then SID_* variables, then defaults."""

    model_config = SettingsConfigDict(env_prefix="SID_", extra="forbid")

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on; 0.0.0.0 lets other machines in.",
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one."
    )
    models: Path = Field(
        default=Path("models"), description="Folder of the models, to serve others than ours."
    )
    threads: int = Field(
        default_factory=available_cpus,
        ge=1,
        description="Threads of one inference; lower it to leave processors to other programs.",
    )
    max_batch_size: int = Field(
        default=32,
        ge=1,
        description="Largest batch; lower it when a full one takes too long or too much memory.",
    )
    queue_size: int = Field(
        default=256,
        ge=1,
        description="Requests that may wait for each model; a low limit refuses clients (429) "
        "instead of having them wait too long.",
    )
    canary_seconds: float = Field(
        default=10.0,
        gt=0,
        description="How long readiness waits for its test image; raise it when a full batch "
        "takes longer than that.",
    )
    drain_seconds: float = Field(
        default=0.0,
        ge=0,
        description="How long to serve on after SIGTERM with readiness red; behind a load "
        "balancer, as long as it takes to notice.",
    )
    grace_seconds: float = Field(
        default=20.0,
        gt=0,
        description="How long accepted requests may take to finish at shutdown; keep it below "
        "the time after which your platform kills the process.",
    )
    log_format: Literal["human", "json"] = Field(
        default="human", description="Log lines for people, or JSON for a log collector."
    )
