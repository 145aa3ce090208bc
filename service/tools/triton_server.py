"""The real Triton server on this machine, without Docker.

NVIDIA's package nvidia-pytriton carries the server's binary with its Python backend. Our stand-in
(deploy/triton/backends) runs there in the place of the onnxruntime backend, so that the bundles
are served as they are. For a laptop and for tests: processors only.
"""

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

PACKAGE = "nvidia-pytriton==0.7.0"  # Triton 2.51.0
_STAND_IN = Path(__file__).parents[2] / "deploy" / "triton" / "backends"
# Runs in an interpreter of its own, which becomes the server, and has the kernel send SIGTERM when
# the thread that started it ends (prctl(2), PR_SET_PDEATHSIG). As a preexec_fn it would need a
# fork of this process: gRPC's poller, copied into the child, aborts it about once in a thousand.
# What Python ignores for itself, the server is not to inherit.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("error: whoever started this has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""
_START_SECONDS = 60
_STOP_SECONDS = 15


class TritonServerError(Exception):
    """Triton cannot be installed or started here; the message says why and what to do."""


@dataclass(frozen=True)
class TritonServer:
    """A running server.

    Attributes:
        process: the server; its model instances are children of their own.
        http, grpc, metrics: its ports on 127.0.0.1.
    """

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    metrics: int


def install() -> None:
    """Install the package beside this program, unless it is there.

    Without its dependencies: they serve its Python API, which is not used, and ask for an old
    numpy.

    Raises:
        TritonServerError: not on this kind of machine, or pip fails.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise TritonServerError(
            "the Triton server comes as a package for Linux on x86-64 only; elsewhere run it by "
            "`docker compose --profile triton up`"
        )
    if _package_folder() is not None:
        return
    log.info("installing Triton", package=PACKAGE, megabytes=55)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", PACKAGE]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TritonServerError(f"pip could not install {PACKAGE}: {done.stderr.strip()}")


@contextlib.contextmanager
def running(
    models: Path,
    *,
    http: int,
    grpc: int,
    metrics: int,
    options: Sequence[str] = (),
) -> Iterator[TritonServer]:
    """Run Triton over a folder of bundles; it is ready inside the context.

    Args:
        models: the repository, which is only read.
        http, grpc, metrics: ports on 127.0.0.1.
        options: further arguments of tritonserver.

    Raises:
        TritonServerError: it is not installed, or does not start.
    """
    package = _package_folder()
    if package is None:
        raise TritonServerError(f"{PACKAGE} is not installed; say make run-triton")
    binary = package / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    with tempfile.TemporaryDirectory(prefix="sid-triton-") as scratch:
        backends = _backends(package / "pytriton" / "tritonserver", Path(scratch))
        log = Path(scratch) / "log"
        command = [
            *(sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid())),
            str(binary),
            f"--model-repository={models}",
            f"--backend-directory={backends}",
            *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            f"--metrics-port={metrics}",
            "--allow-gpu-metrics=false",
            # As in docker-compose.yml: operators load and unload by its HTTP front end.
            "--model-control-mode=explicit",
            "--load-model=*",
            f"--exit-timeout-secs={_STOP_SECONDS // 2}",
            *options,
        ]
        libraries = [package / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        environment = os.environ | {
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            # The backend starts its processes in the first Python on PATH: this one.
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        }
        _require_free(http, grpc, metrics)
        # A group of its own, so that Ctrl-C ends the gateway first; and it ends when we are gone.
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            _wait_until_ready(process, http, log)
            yield TritonServer(process, http, grpc, metrics)
        finally:
            stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the server in order, or by force when it does not; its model instances too."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what a killed server left behind


def _package_folder() -> Path | None:
    try:
        return Path(str(distribution(PACKAGE.partition("==")[0]).locate_file("")))
    except PackageNotFoundError:
        return None


def _backends(server: Path, scratch: Path) -> Path:
    """Put together the folder of backends: Triton's Python backend, and our stand-in on it."""
    if not _STAND_IN.is_dir():
        raise TritonServerError(f"{_STAND_IN} is missing: run from a checkout of the repository")
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.exists():
        raise TritonServerError(f"{PACKAGE} supports no Python {python}; 3.11 to 3.13 work")
    backends = scratch / "backends"
    shutil.copytree(_STAND_IN, backends, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(server / "backends" / "python", backends / "python")
    shutil.copy(stub, backends / "python")
    (backends / "python" / stub.name).chmod(0o755)
    return backends


def _require_free(*ports: int) -> None:
    for port in ports:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            raise TritonServerError(
                f"cannot listen on 127.0.0.1:{port}: {error.strerror}; does another Triton run? "
                "sid triton --help has options for other ports"
            ) from None


def _wait_until_ready(process: "subprocess.Popen[bytes]", http: int, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        connection = HTTPConnection("127.0.0.1", http, timeout=1)  # urllib would ask a proxy
        with contextlib.suppress(OSError, HTTPException), contextlib.closing(connection):
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    status = process.poll()
    how = f"is not ready after {_START_SECONDS} s" if status is None else f"ended with {status}"
    raise TritonServerError(f"Triton did not start, it {how}:\n{_errors(log)}")


def _errors(log: Path) -> str:
    """What Triton says of a failed start: its errors, or else the end of its log."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith(("E1", "E0", "error:"))]
    return "\n".join((errors or lines)[-5:])
