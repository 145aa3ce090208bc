"""Load with everything clients do wrong, on real sockets against the real server in its process.

Eight seconds of it in the suite, minutes of it by `make soak` (SOAK_SECONDS).
"""

import asyncio
import base64
import contextlib
import json
import os
import random
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.bundle import latents, load_bundle
from service.engines.onnx import open_session
from service.priority import PRIORITIES
from service.serving.encoding import encode_png
from tests.service.test_process import serving

SECONDS = float(os.environ.get("SOAK_SECONDS", "8"))
CLIENTS = 48
SEEDS = 300
SEVERAL = 6
CLASSES = 3
PATIENCE = 20  # seconds after which an answer counts as never to come
GROWTH = 24 * 2**20  # bytes of resident memory that are no leak

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 120)]


@dataclass
class Storm:
    """The clients' side: what they expect, and what they saw."""

    port: int
    images: dict[tuple[int, int], bytes]  # (class, seed) -> PNG file
    seen: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def client(self, number: int, until: float) -> None:
        """Behave well and badly in turn, by the dice of this client."""
        dice = random.Random(number)
        ways = [
            *[self.draw] * 6,
            *[self.leave] * 6,
            self.draw_several,
            self.share,
            self.hurry,
            self.pipeline,
            self.dribble,
            self.half_close,
            self.talk_nonsense,
            self.send_bad_body,
            self.stop_in_the_head,
        ]
        while time.monotonic() < until:
            way = dice.choice(ways)
            try:
                async with asyncio.timeout(PATIENCE):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    with contextlib.closing(writer):
                        await way(dice, reader, writer)
                self.seen[way.__name__] += 1
            except TimeoutError:
                self.wrong.append(f"{way.__name__}: no answer in {PATIENCE} s")
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                self.wrong.append(f"{way.__name__}: {error!r}")

    def ask(self, dice: random.Random, **more) -> tuple[tuple[int, int], bytes]:
        """A request for an image that is known, as bytes."""
        label, seed = dice.randrange(CLASSES), dice.randrange(SEEDS)
        return (label, seed), post({"class_label": label, "seed": seed, **more}, priority(dice))

    def validate(self, way: str, key: tuple[int, int], status: int, body: bytes) -> None:
        if status == 429:
            self.seen["refused"] += 1
        elif status != 200:
            self.wrong.append(f"{way}: status {status}: {body[:200]!r}")
        elif body != self.images[key]:
            self.wrong.append(f"{way}: another image than that of class, seed {key}")
        else:
            self.seen["images"] += 1

    async def draw(self, dice, reader, writer) -> None:
        for _ in range(dice.randrange(1, 8)):
            key, request = self.ask(dice)
            writer.write(request)
            self.validate("draw", key, *await answer(reader))

    async def leave(self, dice, _, writer) -> None:
        _, request = self.ask(dice)
        writer.write(request[: dice.choice([len(request), len(request) - 5])])
        await asyncio.sleep(dice.random() * 0.02)
        if dice.random() < 0.5:
            writer.transport.abort()  # a reset, not an orderly end

    async def draw_several(self, dice, reader, writer) -> None:
        (label, seed), request = self.ask(dice, n=SEVERAL)
        writer.write(request)
        status, body = await answer(reader)
        if status == 200:
            for i, image in enumerate(json.loads(body)["images"]):
                file = base64.b64decode(image["png"])
                self.validate("draw_several", (label, seed + i), status, file)
        else:
            self.validate("draw_several", (label, seed), status, body)

    async def share(self, dice, reader, writer) -> None:
        key = (dice.randrange(CLASSES), dice.randrange(3))  # few, so that clients share
        query = f"class_label={key[0]}&seed={key[1]}"
        head = f"GET /generate?{query} HTTP/1.1\r\nhost: test\r\n{priority(dice)}\r\n"
        writer.write(head.encode())
        if dice.random() < 0.3:
            return  # some of those who share leave
        self.validate("share", key, *await answer(reader))

    async def hurry(self, dice, reader, writer) -> None:
        key, request = self.ask(dice)
        deadline = b"\r\nx-deadline-ms: %d\r\n" % dice.randrange(1, 30)
        writer.write(request.replace(b"\r\n", deadline, 1))
        status, body = await answer(reader)
        if status == 504:
            self.seen["late"] += 1
        else:
            self.validate("hurry", key, status, body)

    async def pipeline(self, dice, reader, writer) -> None:
        asked = [self.ask(dice) for _ in range(3)]
        writer.write(b"".join(request for _, request in asked))
        for key, _ in asked:
            self.validate("pipeline", key, *await answer(reader))

    async def dribble(self, dice, reader, writer) -> None:
        key, request = self.ask(dice)
        for start in range(0, len(request), 16):
            writer.write(request[start : start + 16])
            await asyncio.sleep(0.01)
        self.validate("dribble", key, *await answer(reader))

    async def half_close(self, dice, reader, writer) -> None:
        key, request = self.ask(dice)
        writer.write(request)
        writer.write_eof()
        status, body = await answer(reader)
        if status != 400:  # which says that half-closing counts as leaving
            self.validate("half_close", key, status, body)
        if await reader.read():
            self.wrong.append("half_close: more than one answer")

    async def talk_nonsense(self, dice, reader, writer) -> None:
        writer.write(dice.randbytes(dice.randrange(1, 400)) + b"\r\n\r\n")
        status, _ = await answer(reader)
        if status not in (400, 408, 431):
            self.wrong.append(f"talk_nonsense: status {status}")

    async def send_bad_body(self, dice, reader, writer) -> None:
        bodies = [b"{", b"[1]", b'{"seed": -1}', b'{"model": "x"}', b"x" * 70_000, b'{"n": 65}']
        writer.write(post(dice.choice(bodies)))
        status, body = await answer(reader)
        if status not in (400, 404, 413, 422) or json.loads(body)["status"] != status:
            self.wrong.append(f"send_bad_body: {status} {body[:200]!r}")

    async def stop_in_the_head(self, dice, _, writer) -> None:
        writer.write(b"POST /generate HTT")
        await asyncio.sleep(dice.random() * 0.05)


def priority(dice: random.Random) -> str:
    """A header, or none."""
    name = dice.choice([None, *PRIORITIES])
    return f"x-priority: {name}\r\n" if name else ""


def post(body: dict | bytes, further: str = "") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST /generate HTTP/1.1\r\nhost: test\r\ncontent-length: {len(content)}\r\n"
    head += further
    return head.encode() + b"content-type: application/json\r\n\r\n" + content


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return status, await reader.readexactly(int(length[1]))


def draw_all(models: Path) -> dict[tuple[int, int], bytes]:
    """Every image that is asked for, drawn without the server."""
    session = open_session(models / "tiny" / "1" / "model.onnx", 1)
    shape = load_bundle(models / "tiny").manifest.latent_shape
    count = SEEDS + SEVERAL - 1  # the last request for several goes beyond the seeds
    noise = latents(list(range(count)), shape)
    drawn = {}
    for label in range(CLASSES):
        (images,) = session.run(
            ["images"], {"latents": noise, "class_labels": np.full(count, label)}
        )
        drawn |= {(label, seed): encode_png(image) for seed, image in enumerate(images)}
    return drawn


class Observer:
    """What the server's process holds, by its metrics and by /proc."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.proc = url, Path(f"/proc/{pid}")

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = httpx.get(f"{self.url}/metrics").text
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in re.findall(rf"^{name}[{{ ].*", text, re.M)
        )

    def resident(self) -> int:
        return int(self.proc.joinpath("statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        return len(list(self.proc.joinpath("fd").iterdir()))

    def settle(self) -> None:
        """Wait until nothing is queued and only this connection is open."""
        deadline = time.monotonic() + 30
        while self.metric("sid_queue_depth") or self.metric("sid_tasks") > self.idle_tasks:
            assert time.monotonic() < deadline, "work was left behind"
            time.sleep(0.1)


@pytest.mark.parametrize(
    "devices",
    [
        pytest.param(None, id="one engine"),
        pytest.param("cpu,cpu", id="two engines", marks=pytest.mark.long),
    ],
)
def test_nothing_hangs_leaks_or_is_wrong(models, tmp_path, devices):
    images = draw_all(models)
    log = tmp_path / "log"
    plain = {"SID_LOG_LEVEL": "error", "SID_PROVENANCE": "off"}  # as `draw_all` encodes them
    if devices:
        plain["SID_DEVICES"] = devices
    with serving(models, log=log, **plain) as (process, url):
        observer = Observer(url, process.pid)
        observer.metric("sid_tasks")
        observer.idle_tasks = observer.metric("sid_tasks")
        files = observer.open_files()
        storm = Storm(int(url.rsplit(":", 1)[1]), images)

        async def rage(seconds: float) -> None:
            until = time.monotonic() + seconds
            await asyncio.gather(*(storm.client(number, until) for number in range(CLIENTS)))

        asyncio.run(rage(SECONDS / 4))  # memory that is needed once is not a leak
        observer.settle()
        before = observer.resident()
        asyncio.run(rage(SECONDS * 3 / 4))
        observer.settle()
        grown = observer.resident() - before
        assert storm.wrong == []
        assert storm.seen["images"] > 100
        assert min(storm.seen[way] for way in ("leave", "pipeline", "half_close", "dribble")) > 0
        assert grown < GROWTH, f"{grown / 2**20:.1f} MiB more than before: {storm.seen}"
        assert observer.open_files() <= files + 2
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert observer.metric("sid_cancellations_total") > 0
        ups = re.findall(r"^sid_engine_up\{.*\} (.*)$", httpx.get(f"{url}/metrics").text, re.M)
        assert ups == ["1.0"] * (2 if devices else 1)
        for name in PRIORITIES:
            counted = rf'sid_image_seconds_count\{{model="tiny",priority="{name}"\}}'
            assert observer.metric(counted) > 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert log.read_text() == "", "an error was logged"
    print(dict(storm.seen), f"{grown / 2**20:.1f} MiB")
