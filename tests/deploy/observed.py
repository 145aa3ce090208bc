"""What the observability tests look at: both engines and Prometheus, after some of everything."""

import asyncio
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.shipped import PROMETHEUS
from tests.service.triton import free_ports
from tests.service.waiting import until

STUCK = {"model": "stuck", "class_label": 0}  # hangs, until its engine is restarted


class Prometheus:
    """A running Prometheus, asked over its HTTP API."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=f"{url}/api/v1", timeout=30)

    def ask(self, path: str, **parameters: str) -> Any:
        answer = self._http.get(path, params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer['error']}"
        return answer["data"]

    def values(self, expr: str) -> list[float]:
        """What an expression returns now, without the labels."""
        return [float(sample["value"][1]) for sample in self.ask("query", query=expr)["result"]]


@contextmanager
def prometheus(folder: Path, targets: dict[str, list[str]]) -> Iterator[Prometheus]:
    """Run Prometheus with our configuration, but with these targets of each job, and in a hurry."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": targets.pop(job["job_name"])}]
    assert not targets, "a job is missing"
    (folder / "rules").mkdir()
    for path in (PROMETHEUS / "rules").iterdir():
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            group["interval"] = "500ms"
        (folder / "rules" / path.name).write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = [
        shutil.which("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _ready(process, url, folder / "log"))
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _ready(process: subprocess.Popen[bytes], url: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def exposing(text: str) -> Iterator[str]:
    """Answer whoever asks with these metrics; gives host:port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def drive(embedded: str, over_triton: str) -> Counter[str]:
    """Have /generate answer in every way. Returns how many answers had which status."""
    return asyncio.run(_drive(embedded, over_triton))


async def _drive(embedded: str, over_triton: str) -> Counter[str]:
    statuses: Counter[str] = Counter()
    async with httpx.AsyncClient(timeout=30) as http:

        async def post(url: str, body: dict[str, Any], **headers: str) -> int:
            answer = await http.post(f"{url}/generate", json=body, headers=headers)
            statuses[str(answer.status_code)] += 1
            return answer.status_code

        async def get(query: str, **headers: str) -> httpx.Response:
            answer = await http.get(f"{embedded}/generate?{query}", headers=headers)
            statuses[str(answer.status_code)] += 1
            return answer

        async def leave() -> None:
            with pytest.raises(httpx.ReadTimeout):
                await http.post(f"{embedded}/generate", json=STUCK, timeout=0.3)
            statuses["499"] += 1

        for url, model in ((embedded, "tiny"), (embedded, "stuck"), (over_triton, "tiny")):
            for _ in range(5):
                await post(url, {"model": model, "class_label": 1})
            await asyncio.gather(*(post(url, {"model": model, "class_label": 1}) for _ in range(8)))
        for priority in ("bulk", "background"):
            await post(embedded, {"model": "tiny", "class_label": 1}, **{"x-priority": priority})
        drawn = "model=tiny&seed=7&n=4"
        answer = await get(drawn)
        await get(drawn, **{"if-none-match": answer.headers["etag"]})
        await asyncio.gather(*(get(drawn) for _ in range(4)))
        await get("seed=soon")
        # An engine that hangs: a deadline passes, a client leaves, the queue fills up and refuses,
        # and what was accepted fails when the engine is given up.
        first = [
            asyncio.create_task(post(embedded, STUCK, **{"x-deadline-ms": "300"})),
            asyncio.create_task(leave()),
        ]
        await asyncio.sleep(0.05)
        # More than the engine and the queue hold together, even where the first two have ended.
        await asyncio.gather(*first, *(post(embedded, STUCK) for _ in range(48)))
        fine = {"model": "stuck", "class_label": 1}
        async with asyncio.timeout(60):  # it is restarted
            while await post(embedded, fine) != 200:  # noqa: ASYNC110 it has no event
                await asyncio.sleep(0.1)
    return statuses
