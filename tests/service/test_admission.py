"""Full queues, broken engines, clients that leave: the real path, with a tap on the engine."""

import asyncio

import pytest

from service.app import create_app
from service.engines import EngineError
from service.engines.onnx import OnnxEngine
from tests.service.client import Client

BODY = {"class_label": 0, "seed": 1}


class Tap:
    """Holds batches in front of the real engine while closed, or fails them."""

    def __init__(self) -> None:
        self.flow = asyncio.Event()
        self.flow.set()
        self.failure: Exception | None = None
        self.batches: list[int] = []

    def __call__(self, generate):
        async def tapped(engine, noise, class_labels):
            self.batches.append(len(noise))
            await self.flow.wait()
            if self.failure:
                raise self.failure
            return await generate(engine, noise, class_labels)

        return tapped


@pytest.fixture
def tap(monkeypatch):
    tap = Tap()
    monkeypatch.setattr(OnnxEngine, "generate", tap(OnnxEngine.generate))
    return tap


@pytest.fixture
def client(tap, settings):
    small = settings.model_copy(
        update={"queue_size": 2, "max_batch_size": 1, "canary_seconds": 0.2}
    )
    with Client(create_app(small)) as client:
        tap.batches.clear()  # the canary of the start
        tap.flow.clear()
        yield client
        tap.flow.set()


async def post(client: Client):
    return await client.http.post("/generate", json=BODY)


def sample(client: Client, name: str, **labels: str) -> float:
    return client.app.state.telemetry.registry.get_sample_value(name, labels) or 0.0


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0.001)


async def fill(client: Client, tap: Tap, waiting: int) -> list[asyncio.Task]:
    """Bring one request into the engine and `waiting` more into the queue, in that order."""
    posts = [asyncio.create_task(post(client))]
    await until(lambda: tap.batches)
    posts += [asyncio.create_task(post(client)) for _ in range(waiting)]
    await until(lambda: sample(client, "sid_queue_depth", model="tiny") == waiting)
    return posts


def test_a_full_queue_refuses_at_once_and_answers_what_it_accepted(client, tap):
    async def scenario():
        accepted = await fill(client, tap, waiting=2)
        refused = await post(client)
        alive = await client.http.get("/livez")
        tap.flow.set()
        return refused, alive, await asyncio.gather(*accepted)

    refused, alive, accepted = client.run(scenario())
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["type"].endswith(":queue-full")
    assert alive.status_code == 200
    assert [answer.status_code for answer in accepted] == [200, 200, 200]
    assert sample(client, "sid_rejections_total", model="tiny", reason="queue_full") == 1


async def leave(client: Client, left: asyncio.Event) -> int:
    """Send one request as a server would, disconnect when `left` is set, return the status."""
    messages = [{"type": "http.request", "body": b'{"seed": 2}', "more_body": False}]
    sent: list[dict] = []

    async def receive():
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/generate",
        "raw_path": b"/generate",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "state": {},
    }
    await client.app(scope, receive, send)
    return sent[0]["status"]


def test_queued_work_of_a_client_that_left_is_never_computed(client, tap):
    async def scenario():
        (first,) = await fill(client, tap, waiting=0)
        left = asyncio.Event()
        gone = asyncio.create_task(leave(client, left))
        await until(lambda: sample(client, "sid_queue_depth", model="tiny") == 1)
        stays = asyncio.create_task(post(client))
        await until(lambda: sample(client, "sid_queue_depth", model="tiny") == 2)
        left.set()
        status = await gone
        tap.flow.set()
        return status, await asyncio.gather(first, stays)

    status, answers = client.run(scenario())
    assert status == 499
    assert [answer.status_code for answer in answers] == [200, 200]
    assert tap.batches == [1, 1]
    assert sample(client, "sid_cancellations_total", model="tiny", phase="queued") == 1


def test_running_work_of_a_client_that_left_is_dropped_and_the_next_is_served(client, tap):
    async def scenario():
        left = asyncio.Event()
        gone = asyncio.create_task(leave(client, left))
        await until(lambda: tap.batches)
        stays = asyncio.create_task(post(client))
        await until(lambda: sample(client, "sid_queue_depth", model="tiny") == 1)
        left.set()
        status = await gone
        tap.flow.set()
        return status, await stays

    status, answer = client.run(scenario())
    assert status == 499
    assert answer.status_code == 200
    assert sample(client, "sid_cancellations_total", model="tiny", phase="running") == 1


def test_an_engine_that_fails_turns_red_and_recovers(client, tap):
    tap.flow.set()
    tap.failure = EngineError("tiny: out of memory")
    refused = client.generate(BODY)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["type"].endswith(":engine-failed")
    red = client.get("/readyz")
    assert red.status_code == 503
    assert red.json()["models"] == {"tiny": "tiny: out of memory"}
    assert client.get("/livez").status_code == 200
    tap.failure = None
    assert client.generate(BODY).status_code == 200
    assert client.get("/readyz").status_code == 200
    assert sample(client, "sid_batch_failures_total", model="tiny") == 1


def test_an_engine_that_hangs_turns_red_and_probes_do_not_pile_up(client, tap):
    async def probe():
        return await asyncio.gather(*(client.http.get("/readyz") for _ in range(5)))

    for red in client.run(probe()):
        assert red.status_code == 503
        assert "no canary image within 0.2 s" in red.json()["detail"]
    assert tap.batches == [1]
    tap.flow.set()
    assert client.get("/readyz").status_code == 200


def test_shutdown_answers_what_was_accepted_and_refuses_the_rest(client, tap):
    async def scenario():
        accepted = await fill(client, tap, waiting=2)
        model = client.app.state.catalogue.resolve("tiny")
        closing = asyncio.create_task(model.close(grace_seconds=10))
        await asyncio.sleep(0)
        late = await post(client)
        tap.flow.set()
        await closing
        return late, await asyncio.gather(*accepted)

    late, accepted = client.run(scenario())
    assert [answer.status_code for answer in accepted] == [200, 200, 200]
    assert late.status_code == 503
    assert late.json()["type"].endswith(":draining")


def test_shutdown_gives_up_a_hanging_batch_after_its_grace(client, tap):
    async def scenario():
        accepted = await fill(client, tap, waiting=2)
        await client.app.state.catalogue.resolve("tiny").close(grace_seconds=0.05)
        return await asyncio.gather(*accepted)

    assert [answer.status_code for answer in client.run(scenario())] == [503, 503, 503]
