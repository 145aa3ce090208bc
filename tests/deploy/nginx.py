"""The real nginx with the configuration of deploy/nginx, on ports and folders of the tests' own."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.deploy.shipped import ROOT
from tests.service.triton import free_ports
from tests.service.waiting import until

CONFIGURATION = ROOT / "deploy" / "nginx" / "sid.conf"
# Debian's, which is not on everybody's path.
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_nginx = pytest.mark.skipif(
    NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx-light)"
)
_AROUND = """
daemon off;
user {user};
pid {folder}/pid;
error_log {folder}/errors notice;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    {temporary}
    include {folder}/sid.conf;
}}
"""
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def configure(folder: Path, gateways: list[str], port: int) -> Path:
    """Write the configuration for gateways at these addresses (host:port) into a folder."""
    text = CONFIGURATION.read_text()
    servers = "".join(f"server {one};" for one in gateways)
    for shipped, ours in (
        ("server 127.0.0.1:8000;", servers),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("/var/lib/nginx/sid", str(folder / "cache")),
    ):
        assert text.count(shipped) == 1, f"{CONFIGURATION} has no {shipped}"
        text = text.replace(shipped, ours)
    (folder / "sid.conf").write_text(text)
    main = folder / "nginx.conf"
    user = "root" if os.getuid() == 0 else str(os.getuid())
    temporary = "\n    ".join(f"{one}_temp_path {folder}/{one};" for one in _TEMPORARY)
    main.write_text(_AROUND.format(folder=folder, user=user, temporary=temporary))
    return main


@contextmanager
def proxying(folder: Path, gateways: list[str]) -> Iterator[str]:
    """Run nginx before gateways; yields its address."""
    (port,) = free_ports(1)
    command = [str(NGINX), "-p", str(folder), "-c", str(configure(folder, gateways, port))]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _answers(process, url, folder / "log"))
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def _answers(process: "subprocess.Popen[bytes]", url: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return httpx.get(f"{url}/metrics").status_code == 404
    except httpx.TransportError:
        return False
