"""Full queues, broken engines, clients that leave: the real path, with a tap on the engine."""

import asyncio
from time import monotonic

import httpx
import pytest

from service.app import create_app
from service.bundle import golden
from service.engines import EngineError
from service.engines.onnx import OnnxEngine
from service.http.full_queue import FullQueue
from service.http.security import new_key
from service.priority import PRIORITIES
from service.serving import supervision
from tests.service.client import Client
from tests.service.waiting import happens, turns

PAGE = "https://page.example"  # of another origin, which may call the API
BODY = {"class_label": 0, "seed": 1}


class Tap:
    """Holds batches in front of the real engine while closed, fails them, or makes them long.

    How long is a matter of a clock that it sets forward: nobody waits for the seconds to pass.
    """

    def __init__(self) -> None:
        self.flow = asyncio.Event()
        self.flow.set()
        self.failure: Exception | None = None
        self.seconds = 0.0  # that each batch takes
        self.ahead = 0.0  # seconds by which the clocks of loop and supervision are ahead
        self.batches: list[int] = []

    def __call__(self, generate):
        async def tapped(engine, prepare, finish, *deadline):
            self.batches.append(len(prepare().inputs["latents"]))
            await self.flow.wait()
            self.ahead += self.seconds
            if self.failure:
                raise self.failure
            return await generate(engine, prepare, finish, *deadline)

        return tapped


@pytest.fixture
def tap(monkeypatch):
    tap = Tap()
    monkeypatch.setattr(supervision, "monotonic", lambda: monotonic() + tap.ahead)
    monkeypatch.setattr(OnnxEngine, "generate", tap(OnnxEngine.generate))
    return tap


@pytest.fixture
def client(tap, settings):
    small = {"queue_size": 2, "max_batch_size": 1, "concurrency": 1, "cors_origins": PAGE}
    small = settings.model_copy(update=small)
    with Client(create_app(small)) as client:
        loop = client.run(running_loop())
        true_time = loop.time
        loop.time = lambda: true_time() + tap.ahead
        tap.batches.clear()  # the canary of the start
        tap.flow.clear()
        yield client
        tap.flow.set()


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


async def post(client: Client):
    return await client.http.post("/generate", json=BODY)


def sample(client: Client, name: str, **labels: str) -> float:
    if name in ("sid_queue_depth", "sid_rejections_total"):
        labels = {"priority": "interactive"} | labels
    return client.app.state.metrics.registry.get_sample_value(name, labels) or 0.0


async def fill(client: Client, tap: Tap, waiting: int) -> list[asyncio.Task]:
    """Bring one request into the engine and `waiting` more into the queue, in that order."""
    posts = [asyncio.create_task(post(client))]
    await happens(lambda: tap.batches)
    posts += [asyncio.create_task(post(client)) for _ in range(waiting)]
    await happens(lambda: sample(client, "sid_queue_depth", model="tiny") == waiting)
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
        await happens(lambda: sample(client, "sid_queue_depth", model="tiny") == 1)
        stays = asyncio.create_task(post(client))
        await happens(lambda: sample(client, "sid_queue_depth", model="tiny") == 2)
        left.set()
        status = await gone
        tap.flow.set()
        return status, await asyncio.gather(first, stays)

    status, answers = client.run(scenario())
    assert status == 499
    assert [answer.status_code for answer in answers] == [200, 200]
    assert tap.batches == [1, 1]
    assert (
        sample(client, "sid_cancellations_total", model="tiny", cause="abandoned", phase="queued")
        == 1
    )


def test_running_work_of_a_client_that_left_is_dropped_and_the_next_is_served(client, tap):
    async def scenario():
        left = asyncio.Event()
        gone = asyncio.create_task(leave(client, left))
        await happens(lambda: tap.batches)
        stays = asyncio.create_task(post(client))
        await happens(lambda: sample(client, "sid_queue_depth", model="tiny") == 1)
        left.set()
        status = await gone
        tap.flow.set()
        return status, await stays

    status, answer = client.run(scenario())
    assert status == 499
    assert answer.status_code == 200
    assert (
        sample(client, "sid_cancellations_total", model="tiny", cause="abandoned", phase="running")
        == 1
    )


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
    assert client.generate(BODY).json()["type"].endswith(":engine-down")
    assert client.get("/livez").status_code == 200
    tap.failure = None
    client.run(happens(lambda: sample(client, "sid_engine_up", model="tiny", device="cpu:0")))
    assert client.generate(BODY).status_code == 200
    assert client.get("/readyz").status_code == 200
    assert sample(client, "sid_batch_failures_total", model="tiny") == 1


def test_probes_do_not_pile_up_and_a_full_queue_is_no_reason_to_be_red(client, tap):
    async def scenario():
        posts = await fill(client, tap, waiting=2)
        probes = [asyncio.create_task(client.http.get("/readyz")) for _ in range(5)]
        await happens(lambda: len(tap.batches) == 2)
        tap.flow.set()
        await asyncio.gather(*posts)
        return await asyncio.gather(*probes)

    assert {probe.status_code for probe in client.run(scenario())} == {200}
    assert len(tap.batches) == 1 + 1 + 2, "one canary, beside the three requests"


def test_probes_that_follow_each_other_share_a_canary_too(client, tap, monkeypatch):
    """Readiness needs no key, and must not be a way to the engine's time."""
    tap.flow.set()
    decoded = []
    monkeypatch.setattr(golden, "_decode", decoded.append)
    started = monotonic()
    answers = [client.get("/readyz").status_code for _ in range(50)]
    assert set(answers) == {200}
    assert len(tap.batches) <= 1 + (monotonic() - started), "one a second"
    assert decoded == [], "the golden image was decoded at the start"
    canaries = sample(client, "sid_canaries_total", model="tiny", result="right")
    assert canaries == len(tap.batches)


def test_a_batch_that_fails_ends_what_a_canary_said(client, tap):
    tap.flow.set()
    assert client.get("/readyz").status_code == 200
    tap.failure = EngineError("tiny: out of memory")
    assert client.generate(BODY).status_code == 503
    assert client.get("/readyz").status_code == 503
    assert sample(client, "sid_canaries_total", model="tiny", result="wrong") >= 1


def test_a_canary_that_takes_long_counts_for_longer(client, tap, monkeypatch):
    tap.flow.set()
    tap.seconds = 0.05
    monkeypatch.setattr(supervision, "_REMEMBERED_SECONDS", 0.0)
    started = supervision.monotonic()
    for _ in range(30):
        assert client.get("/readyz").status_code == 200
        tap.ahead += 0.05
    seconds = supervision.monotonic() - started
    assert 1 < len(tap.batches) <= 1 + seconds / 0.5, "a tenth of the time at most"


def test_a_deadline_that_passes_is_504_and_queued_work_is_not_computed(client, tap):
    async def scenario():
        (first,) = await fill(client, tap, waiting=0)
        late = await client.http.post("/generate", json=BODY, headers={"x-deadline-ms": "250"})
        tap.flow.set()
        return await first, late

    first, late = client.run(scenario())
    assert first.status_code == 200
    assert late.status_code == 504
    assert late.json()["type"].endswith(":deadline")
    assert tap.batches == [1]
    labels = {"model": "tiny", "cause": "deadline", "phase": "queued"}
    assert sample(client, "sid_cancellations_total", **labels) == 1


def test_work_that_cannot_finish_in_time_is_refused_early(client, tap):
    async def slow_then_busy():
        tap.flow.set()
        tap.seconds = 0.4
        await post(client)  # the pace is known from now on
        tap.flow.clear()
        tap.batches.clear()
        posts = await fill(client, tap, waiting=1)
        refused = await client.http.post("/generate", json=BODY, headers={"x-deadline-ms": "300"})
        tap.flow.set()
        patient = await client.http.post("/generate", json=BODY, headers={"x-deadline-ms": "9000"})
        return refused, patient, await asyncio.gather(*posts)

    refused, patient, others = client.run(slow_then_busy())
    assert refused.status_code == 504
    assert "the queue leaves no time" in refused.json()["detail"]
    assert [answer.status_code for answer in (patient, *others)] == [200, 200, 200]
    assert sample(client, "sid_rejections_total", model="tiny", reason="deadline") == 1


@pytest.mark.parametrize("sent", ["soon", "0", "-1", "nan", "inf", "3600001", ""])
def test_a_deadline_that_is_no_time_is_malformed(client, sent):
    refused = client.generate(BODY, **{"x-deadline-ms": sent})
    assert refused.status_code == 400
    assert "X-Deadline-Ms must be a number" in refused.json()["detail"]


def test_retry_after_is_the_time_that_the_queue_takes_at_the_measured_pace(client, tap):
    async def scenario():
        tap.flow.set()
        tap.seconds = 1.02
        await post(client)
        tap.flow.clear()
        tap.batches.clear()
        posts = await fill(client, tap, waiting=2)
        refused = await post(client)
        for one in posts:
            one.cancel()
        return refused

    refused = client.run(scenario())
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "4", "three batches of little over 1 s"


def test_several_images_are_accepted_all_or_none(client, tap):
    async def scenario():
        first = await fill(client, tap, waiting=1)
        refused = await client.http.post("/generate", json={"seed": 1, "n": 2})
        depth = sample(client, "sid_queue_depth", model="tiny")
        tap.flow.set()
        await asyncio.gather(*first)
        return refused, depth, await client.http.post("/generate", json={"seed": 1, "n": 2})

    refused, depth, accepted = client.run(scenario())
    assert refused.status_code == 429
    assert depth == 1
    assert accepted.status_code == 200


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


def test_each_key_has_its_rate_and_what_it_exceeds_is_counted(settings, tmp_path):
    alice, bob = new_key("alice"), new_key("bob")
    (tmp_path / "keys").write_text(f"{alice.line}\n{bob.line}\n")
    limits = {"keys": tmp_path / "keys", "rate": 0.01, "burst": 3}
    with Client(create_app(settings.model_copy(update=limits))) as client:
        key = {"x-api-key": alice.secret}
        assert client.generate({"n": 3}, **key).status_code == 200
        refused = client.get("/generate?seed=7", headers=key)
        assert refused.status_code == 429
        assert refused.json()["type"].endswith(":rate-limited")
        assert 90 < int(refused.headers["retry-after"]) <= 100
        assert client.generate({"n": 3}, **{"x-api-key": bob.secret}).status_code == 200
        assert client.generate({"n": 4}, **{"x-api-key": bob.secret}).status_code == 413
        assert client.get("/readyz").status_code == 200
        reasons = {"model": "tiny", "reason": "rate_limited"}
        assert sample(client, "sid_rejections_total", **reasons) == 1


def a_door(client: Client) -> FullQueue:
    state = client.app.state
    return FullQueue(state.catalogue, state.keys, frozenset({PAGE}), state.metrics)


def at_the_door(
    client: Client, method: str, url: str, door: FullQueue | None = None, **more
) -> httpx.Response | None:
    """What a request is answered at the door; None: it goes the usual way."""
    door = door or a_door(client)
    request = client.http.build_request(method, url, **more)
    headers = [(name.lower(), value) for name, value in request.headers.raw]
    answer = door.refusal(method.encode(), request.url.query, headers, request.read())
    if answer is None:
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = [tuple(line.split(b": ", 1)) for line in head.split(b"\r\n")]
    return httpx.Response(429, headers=fields, content=body)


REFUSED = [
    ("POST", "/generate", {"json": {}}),
    ("POST", "/generate", {"json": {"seed": 1, "n": 2}}),
    ("POST", "/generate", {"json": {"model": "tiny"}}),
    ("GET", "/generate?seed=1", {}),
    ("GET", "/generate?model=tiny&seed=1", {"headers": {"Origin": PAGE}}),
    ("POST", "/generate", {"headers": {"X-Request-ID": "mine"}}),
    ("POST", "/generate", {"headers": {"X-Priority": "interactive"}}),
    ("POST", "/generate", {"headers": {"X-Priority": "bulk"}}),
    ("GET", "/generate?seed=1", {"headers": [("X-Priority", "Background"), ("X-Priority", "x")]}),
]


def test_the_door_answers_and_counts_as_the_queue_does(client, tap):
    def counted() -> list[float]:
        rejections = {"model": "tiny", "reason": "queue_full"}
        return [
            *(sample(client, "sid_rejections_total", **rejections, priority=p) for p in PRIORITIES),
            sample(client, "sid_requests_total", route="/generate", model="tiny", status="429"),
        ]

    async def scenario():
        accepted = await fill(client, tap, waiting=2)
        door = [at_the_door(client, method, url, **more) for method, url, more in REFUSED]
        once = counted()
        queue = [await client.http.request(method, url, **more) for method, url, more in REFUSED]
        twice = counted()
        tap.flow.set()
        await asyncio.gather(*accepted)
        return door, queue, once, twice

    door, queue, once, twice = client.run(scenario())
    for at_door, at_queue in zip(door, queue, strict=True):
        assert at_door.status_code == at_queue.status_code == 429
        assert at_door.content == at_queue.content
        ids = [answer.headers.pop("x-request-id") for answer in (at_door, at_queue)]
        assert at_door.headers == at_queue.headers
        assert ids[0] == ids[1] == "mine" or ids[0] != ids[1]
    assert sum(once) == 2 * len(REFUSED)
    assert twice == [2 * count for count in once]


def test_of_many_that_come_at_once_as_many_pass_the_door_as_there_is_room_for(client, tap):
    def one(door: FullQueue) -> bool:
        passes = not door.may_refuse()
        return passes or at_the_door(client, "POST", "/generate", door, json=BODY) is None

    async def scenario():
        accepted = await fill(client, tap, waiting=1)
        door = a_door(client)
        first = [one(door) for _ in range(3)]  # none has queued its image yet
        await turns()
        second = [one(door) for _ in range(3)]  # those before never did
        accepted.append(asyncio.create_task(post(client)))
        await happens(lambda: sample(client, "sid_queue_depth", model="tiny") == 2)
        third = one(door)
        tap.flow.set()
        await asyncio.gather(*accepted)
        await turns()
        return first, second, third, [one(door) for _ in range(5)]

    first, second, third, last = client.run(scenario())
    assert first == second == [True, False, False]
    assert not third
    assert last == [True, True, True, False, False], "one at once, and two that wait"


NOT_REFUSED_AT_THE_DOOR = {
    "another model": ("POST", "/generate", {"json": {"model": "none"}}, 404),
    "another model by query": ("GET", "/generate?model=none&seed=1", {}, 404),
    "no priority": ("POST", "/generate", {"headers": {"X-Priority": "soon"}}, 400),
    "models named twice": ("POST", "/generate", {"content": b'{"model":"tiny","model":"x"}'}, 404),
    "a name with an escape": ("POST", "/generate", {"content": rb'{"mod\u0065l": "none"}'}, 404),
    "another method": ("PUT", "/generate", {}, 405),
    "no body wanted": ("HEAD", "/generate?seed=1", {}, 429),
}


@pytest.mark.parametrize("case", NOT_REFUSED_AT_THE_DOOR)
def test_what_the_queue_does_not_decide_is_answered_as_ever(client, tap, case):
    method, url, more, status = NOT_REFUSED_AT_THE_DOOR[case]
    if "content" in more:
        more = {**more, "headers": {"Content-Type": "application/json"}}

    async def scenario():
        accepted = await fill(client, tap, waiting=2)
        door = at_the_door(client, method, url, **more)
        answer = await client.http.request(method, url, **more)
        tap.flow.set()
        await asyncio.gather(*accepted)
        return door, answer

    door, answer = client.run(scenario())
    assert door is None
    assert answer.status_code == status


def test_a_copy_that_is_still_right_is_confirmed_while_the_queue_is_full(client, tap):
    async def scenario():
        tap.flow.set()
        tag = (await client.http.get("/generate?seed=1")).headers["etag"]
        tap.flow.clear()
        tap.batches.clear()
        accepted = await fill(client, tap, waiting=2)
        copy = {"headers": {"If-None-Match": tag}}
        assert at_the_door(client, "GET", "/generate?seed=1", **copy) is None
        answer = await client.http.get("/generate?seed=1", **copy)
        tap.flow.set()
        await asyncio.gather(*accepted)
        return answer

    assert client.run(scenario()).status_code == 304


def test_an_engine_that_is_down_is_what_a_request_is_refused_for(client, tap):
    model = next(iter(client.app.state.catalogue.models.values()))

    async def scenario():
        accepted = await fill(client, tap, waiting=2)
        model.pool.supervisors[0].down = "taken out by the test"
        assert at_the_door(client, "POST", "/generate", json=BODY) is None
        answer = await post(client)
        model.pool.supervisors[0].down = None
        tap.flow.set()
        await asyncio.gather(*accepted)
        return answer

    answer = client.run(scenario())
    assert answer.json()["type"].endswith(":engine-down")


def test_who_brings_no_known_key_is_told_so_while_the_queue_is_full(settings, tap, tmp_path):
    key = new_key("ann")
    keys = tmp_path / "keys"
    keys.write_text(f"{key.line}\n")
    small = {"queue_size": 1, "max_batch_size": 1, "concurrency": 1, "keys": keys}

    async def scenario(client):
        client.http.headers["X-API-Key"] = key.secret
        tap.batches.clear()
        tap.flow.clear()
        accepted = await fill(client, tap, waiting=1)
        keys = [{"X-API-Key": key.secret}, {"X-API-Key": "sid_wrong"}, {}]
        del client.http.headers["X-API-Key"]
        door = [at_the_door(client, "POST", "/generate", headers=one) for one in keys]
        answers = [await client.http.post("/generate", headers=one) for one in keys]
        tap.flow.set()
        await asyncio.gather(*accepted)
        return [one and one.status_code for one in (*door, *answers)]

    with Client(create_app(settings.model_copy(update=small))) as client:
        assert client.run(scenario(client)) == [429, None, None, 429, 403, 401]
