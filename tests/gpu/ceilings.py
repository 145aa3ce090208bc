"""What the card can do at most, measured; and what it is."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from tests.gpu.record import Record
from tests.gpu.timing import on, seconds_per_call

_SMI = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


def run(record: Record) -> None:
    """Fill the table of the ceilings."""
    device, toy = on(record.toy), record.toy
    record.facts(**machine())
    for key, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        record.row(key, matrix_product(device, dtype, tf32=tf32, toy=toy))
    record.row("copy", copying(device, toy=toy))


def machine() -> dict[str, str]:
    """Driver, versions and clocks, as far as this machine tells them."""
    facts = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
    }
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            continue
    return facts | _driver() | _commit()


def matrix_product(
    device: torch.device, dtype: torch.dtype, *, tf32: bool = False, toy: bool
) -> float:
    """TFLOP/s of a product of two square matrices."""
    size = 128 if toy else 8192
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        seconds, _ = seconds_per_call(lambda: a @ b, device, budget=3, toy=toy)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * size**3 / seconds / 1e12


def copying(device: torch.device, *, toy: bool) -> float:
    """TB/s read and written by a copy of float32 numbers."""
    source = torch.ones(1 << (16 if toy else 30), device=device)
    target = torch.empty_like(source)
    seconds, _ = seconds_per_call(lambda: target.copy_(source), device, budget=3, toy=toy)
    return 2 * source.numel() * source.element_size() / seconds / 1e12


def _driver() -> dict[str, str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader", "--id=0"]
    answer = _output(command)
    return dict(zip(_SMI, answer.split(", "), strict=False)) if answer else {}


def _commit() -> dict[str, str]:
    answer = _output(["git", "rev-parse", "--short", "HEAD"])
    return {"commit": answer} if answer else {}


def _output(command: list[str]) -> str:
    """What a program prints; nothing where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
