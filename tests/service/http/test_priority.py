"""X-Priority and the ceilings of keys: what a request asks for, what it gets, what it is told."""

import asyncio
import base64
import json

import pytest

from service.app import create_app
from service.bundle import latents
from service.engines.onnx import OnnxEngine
from service.http.security import new_key
from service.priority import Priority
from tests.service.client import Client
from tests.service.waiting import happens

GET = "/generate?class_label=0&seed={}"


class Gate:
    """Holds every batch in front of the real engine, and says of each whose images it has."""

    def __init__(self) -> None:
        self.flow = asyncio.Event()
        self.batches: list[list[float]] = []

    def hold(self, generate):
        async def held(engine, prepare, finish, *deadline):
            self.batches.append([row.flat[0] for row in prepare().inputs["latents"]])
            await self.flow.wait()
            return await generate(engine, prepare, finish, *deadline)

        return held


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    monkeypatch.setattr(OnnxEngine, "generate", gate.hold(OnnxEngine.generate))
    return gate


@pytest.fixture
def held(gate, settings):
    """A server whose queue holds four images, and whose engine computes one at a time."""
    small = {"queue_size": 4, "max_batch_size": 1, "concurrency": 1}
    gate.flow.set()
    with Client(create_app(settings.model_copy(update=small))) as client:
        gate.batches.clear()  # the canary of the start
        gate.flow.clear()
        yield client
        gate.flow.set()


def noise_of(seed: int) -> list[float]:
    """By which `Gate` knows a batch of this one image."""
    return [latents([seed], (1, 8, 8)).flat[0]]


def waits(client: Client, priority: str) -> float:
    labels = {"model": "tiny", "priority": priority}
    return client.app.state.metrics.registry.get_sample_value("sid_queue_depth", labels)


def refused(client: Client, priority: str) -> float:
    labels = {"model": "tiny", "priority": priority, "reason": "queue_full"}
    return client.app.state.metrics.registry.get_sample_value("sid_rejections_total", labels)


async def ask(client: Client, priority: str, count: int = 1, **body) -> list[asyncio.Task]:
    """Have so many requests wait, one after the other."""
    tasks = []
    for _ in range(count):
        before = waits(client, priority)
        posting = client.http.post(
            "/generate", json={"class_label": 0, **body}, headers={"x-priority": priority}
        )
        tasks.append(asyncio.create_task(posting))
        await happens(lambda before=before: waits(client, priority) == before + body.get("n", 1))
    return tasks


async def occupy(client: Client, gate: Gate) -> asyncio.Task:
    """Bring one request into the engine."""
    first = asyncio.create_task(client.http.post("/generate", json={"seed": 999}))
    await happens(lambda: gate.batches)
    return first


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/generate", {"class_label": 0, "seed": 1}),
        ("GET", GET.format(1), None),
        ("POST", "/v1/images/generations", {"prompt": "0", "seed": 1}),
    ],
)
def test_every_route_that_draws_heeds_the_header_alike(client, method, path, body):
    def send(**headers):
        return client.request(method, path, json=body, headers=headers)

    plain = send()
    assert plain.status_code == 200
    assert "x-priority" not in plain.headers
    for sent in ("interactive", "bulk", "background", " Bulk "):
        answer = send(**{"x-priority": sent})
        assert answer.status_code == 200
        had = sent.strip().lower()
        assert answer.headers.get("x-priority") == (None if had == "interactive" else had)
        if method == "GET":
            assert answer.content == plain.content
            assert answer.headers["etag"] == plain.headers["etag"]
    for wrong in ("urgent", "", "0", "bulk,background"):
        answer = send(**{"x-priority": wrong})
        assert answer.status_code == 400
        assert answer.json()["detail"] == (
            f"X-Priority must be interactive, bulk or background, not {wrong!r}"
        )
    labels = {"model": "tiny", "priority": "bulk"}
    drawn = client.app.state.metrics.registry.get_sample_value("sid_image_seconds_count", labels)
    assert drawn == 2


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_a_key_is_a_ceiling_and_what_is_above_it_is_lowered(settings, tmp_path, path):
    made = {priority: new_key(f"the-{priority}-one", priority) for priority in Priority}
    (tmp_path / "keys").write_text("\n".join(key.line for key in made.values()))
    got = {}
    with Client(create_app(settings.model_copy(update={"keys": tmp_path / "keys"}))) as client:
        for ceiling, key in made.items():
            for sent in (None, *map(str, Priority)):
                headers = {"x-api-key": key.secret} | ({"x-priority": sent} if sent else {})
                answer = client.request("POST", path, json={"prompt": "1"} if "v1" in path else {},
                                        headers=headers)  # fmt: skip
                assert answer.status_code == 200
                got[str(ceiling), sent] = answer.headers.get("x-priority")
    assert got == {
        ("interactive", None): None,
        ("interactive", "interactive"): None,
        ("interactive", "bulk"): "bulk",
        ("interactive", "background"): "background",
        ("bulk", None): "bulk",
        ("bulk", "interactive"): "bulk",
        ("bulk", "bulk"): "bulk",
        ("bulk", "background"): "background",
        ("background", None): "background",
        ("background", "interactive"): "background",
        ("background", "bulk"): "background",
        ("background", "background"): "background",
    }


def test_what_waits_is_drawn_by_priority_and_within_one_in_order(held, gate):
    async def scenario():
        posts = [await occupy(held, gate)]
        for priority, seed in (("background", 1), ("bulk", 2), ("interactive", 3), ("bulk", 4)):
            posts += await ask(held, priority, seed=seed)
        gate.flow.set()
        return await asyncio.gather(*posts)

    answers = held.run(scenario())
    assert {answer.status_code for answer in answers} == {200}
    assert gate.batches == [noise_of(seed) for seed in (999, 3, 2, 4, 1)]


def test_a_full_queue_refuses_the_newest_of_the_lowest_for_a_higher_one(held, gate):
    async def scenario():
        posts = {"first": [await occupy(held, gate)]}
        posts["background"] = await ask(held, "background", 2)
        posts["bulk"] = await ask(held, "bulk", 2)
        background = {"x-priority": "background"}
        full = await held.http.post("/generate", json={}, headers=background)
        # On the usual way, and not at the door, which leaves this path to it.
        body = {"prompt": "1"}
        usual = await held.http.post("/v1/images/generations", json=body, headers=background)
        assert {full.status_code, usual.status_code} == {429}
        assert full.headers["x-priority"] == usual.headers["x-priority"] == "background"
        posts["interactive"] = [
            asyncio.create_task(held.http.post("/generate", json={})) for _ in range(2)
        ]
        await happens(lambda: waits(held, "interactive") == 2)
        last = await held.http.post("/generate", json={})
        gate.flow.set()
        answers = {name: await asyncio.gather(*those) for name, those in posts.items()}
        return full, last, answers

    full, last, answers = held.run(scenario())
    assert {name: [one.status_code for one in those] for name, those in answers.items()} == {
        "first": [200],
        "background": [200, 429],
        "bulk": [200, 429],
        "interactive": [200, 200],
    }
    shed = answers["background"][1]
    assert shed.json() == full.json(), "the same refusal, whether it waited before or not"
    assert shed.headers["x-priority"] == "background"
    assert last.status_code == 429, "the oldest of each stays"
    assert [refused(held, str(priority)) for priority in Priority] == [1, 1, 3]


def test_several_images_make_room_and_are_refused_together(held, gate):
    async def scenario():
        first = await occupy(held, gate)
        bulk = await ask(held, "bulk") + await ask(held, "bulk", n=3)
        several = await ask(held, "interactive", n=3)
        assert waits(held, "bulk") == 1
        gate.flow.set()
        return await asyncio.gather(first, *bulk, *several)

    first, small, large, several = held.run(scenario())
    assert [one.status_code for one in (first, small, large, several)] == [200, 200, 429, 200]
    images = json.loads(several.content)["images"]
    assert len({base64.b64decode(image["png"]) for image in images}) == 3


def test_a_shared_image_has_the_highest_priority_of_those_who_wait_for_it(held, gate):
    async def scenario():
        gets = []

        async def get(seed: int, priority: str | None) -> None:
            headers = {"x-priority": priority} if priority else {}
            task = asyncio.create_task(held.http.get(GET.format(seed), headers=headers))
            gets.append(task)

        posts = [await occupy(held, gate)]
        await get(1, "background")
        await happens(lambda: waits(held, "background") == 1)
        posts += await ask(held, "bulk", seed=2)
        await get(1, None)
        await happens(lambda: waits(held, "interactive") == 1)
        assert waits(held, "background") == 0
        gate.flow.set()
        return await asyncio.gather(*posts, *gets)

    answers = held.run(scenario())
    assert {answer.status_code for answer in answers} == {200}
    assert answers[-1].content == answers[-2].content
    assert gate.batches == [noise_of(seed) for seed in (999, 1, 2)]


def test_retry_after_counts_what_goes_before(held, gate, monkeypatch):
    """At a pace of a second a batch, which the batcher is told instead of taking it."""

    async def scenario():
        batcher = held.app.state.catalogue.resolve("tiny")._batcher
        monkeypatch.setattr(batcher, "_batch_seconds", 1.0)
        posts = [await occupy(held, gate), *await ask(held, "background"), *await ask(held, "bulk")]
        posts += await ask(held, "interactive", 2)
        refusals = {}
        for priority in map(str, Priority):
            refusals[priority] = await held.http.post(
                "/generate", json={}, headers={"x-priority": priority}
            )
        for post in posts:
            post.cancel()
        return refusals

    refusals = held.run(scenario())
    assert {answer.status_code for answer in refusals.values()} == {429}
    waited = {name: int(answer.headers["retry-after"]) for name, answer in refusals.items()}
    assert waited == {"interactive": 3, "bulk": 4, "background": 5}
