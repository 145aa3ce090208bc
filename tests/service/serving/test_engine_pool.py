"""Several engines of one model: the least loaded first, and what one loses another draws."""

import asyncio
import itertools
from collections import Counter

import numpy as np
import pytest

from service.app import create_app
from service.bundle import latents, load_bundle
from service.engines import EngineError, Prepared
from service.engines.onnx import OnnxEngine
from service.priority import PRIORITIES
from service.serving import engine_selection
from service.serving.engine_pool import EnginePool
from service.serving.exceptions import EngineDownError
from tests.bundles import FOR_EVER, compute, write_bundle
from tests.service.client import Client
from tests.service.waiting import happens, turns

HANGS = 0  # class of the bundle
MODEL = {"model": "tiny"}


class Faulty(OnnxEngine):
    """Breaks when it is told to, at the edge of the engine; counts what is asked of it.

    Attributes:
        faults: of each device `raises`, `hangs` (in native code), both one after the other, or
            `differs` (draws other images).
        held: what batches of a device wait for before they are computed.
        drawn: how many batches each device was given.
        at_a_time: how many of them at a time, at most.
    """

    faults: dict[str, str | None]
    held: dict[str, asyncio.Event]
    drawn: Counter[str]
    at_a_time: Counter[str]

    @classmethod
    def forget(cls) -> None:
        cls.faults, cls.held = {}, {}
        cls.drawn, cls.at_a_time, cls.under_way = Counter(), Counter(), Counter()

    async def generate(self, prepare, finish, deadline=None):
        self.drawn[self.device] += 1
        self.under_way[self.device] += 1
        most = max(self.at_a_time[self.device], self.under_way[self.device])
        self.at_a_time[self.device] = most
        try:
            if (held := self.held.get(self.device)) is not None:
                await held.wait()
            return await super().generate(self._prepared(prepare), finish, deadline)
        finally:
            self.under_way[self.device] -= 1

    def _prepared(self, prepare):
        fault = self.faults.get(self.device)
        if fault == "raises, then hangs":
            self.faults[self.device] = "hangs"
        if fault in ("raises", "raises, then hangs"):
            raise EngineError("out of order")

        def other():
            inputs = dict(prepare().inputs)
            if fault == "hangs":
                inputs["class_labels"] = np.full_like(inputs["class_labels"], HANGS)
            inputs["latents"] = inputs["latents"][:, :, ::-1]
            return Prepared(inputs)

        return prepare if fault is None else other


@pytest.fixture(autouse=True)
def _no_faults():
    Faulty.forget()


@pytest.fixture
def bundle(tmp_path):
    return load_bundle(write_bundle(tmp_path / "hanging", turns=FOR_EVER))


class Pool(EnginePool):
    """A pool of so many engines, which is open within the context."""

    def __init__(self, bundle, count=2, *, concurrency=1, seconds=60):
        self.failures = 0
        engines = [
            Faulty(bundle, threads=1, concurrency=concurrency, number=number)
            for number in range(count)
        ]
        super().__init__(
            engines,
            bundle,
            seconds=seconds,
            on_change=lambda: None,
            on_failure=self._count_failure,
        )

    def _count_failure(self):
        self.failures += 1

    async def __aenter__(self):
        await self.open()
        Faulty.drawn.clear()
        return self

    async def __aexit__(self, *_):
        await self.close()

    async def draw(self, label=1):
        return await compute(self, latents([7], (1, 8, 8)), np.array([label]))


def test_the_least_loaded_engine_is_first_and_of_equals_the_one_that_rested_longest(bundle):
    async def scenario():
        async with Pool(bundle, 3, concurrency=2) as pool:
            for _ in range(6):
                await pool.draw()
            assert Faulty.drawn == {"cpu:0": 2, "cpu:1": 2, "cpu:2": 2}, "they take turns"
            Faulty.drawn.clear()
            Faulty.held = {f"cpu:{number}": asyncio.Event() for number in range(3)}
            batches = [asyncio.create_task(pool.draw()) for _ in range(5)]
            await turns()
            assert Faulty.drawn == {"cpu:0": 2, "cpu:1": 2, "cpu:2": 1}
            Faulty.held["cpu:1"].set()
            await happens(lambda: sum(batch.done() for batch in batches) == 2)
            for _ in range(2):
                await pool.draw()
            assert Faulty.drawn == {"cpu:0": 2, "cpu:1": 4, "cpu:2": 1}, "it had nothing to do"
            for event in Faulty.held.values():
                event.set()
            await asyncio.gather(*batches)

    asyncio.run(scenario())


def test_what_takes_over_gives_no_engine_more_than_it_computes_at_a_time(bundle):
    async def scenario():
        async with Pool(bundle) as pool:
            expected = await pool.draw()
            Faulty.at_a_time.clear()
            Faulty.held = {"cpu:0": asyncio.Event(), "cpu:1": asyncio.Event()}
            batches = [asyncio.create_task(pool.draw()) for _ in range(2)]
            await turns()
            assert pool.concurrency == 2
            Faulty.faults["cpu:1"] = "raises"
            Faulty.held["cpu:1"].set()
            await happens(lambda: pool.devices == {"cpu:0": True, "cpu:1": False})
            assert pool.concurrency == 1
            assert pool.down is None
            assert not any(batch.done() for batch in batches), "one waits for its turn"
            Faulty.held["cpu:0"].set()
            images = await asyncio.gather(*batches)
            assert all(np.array_equal(image, expected) for image in images)
            assert Faulty.at_a_time["cpu:0"] == 1
            assert pool.failures == 1

    asyncio.run(scenario())


def test_an_engine_that_is_looked_into_gets_no_batches_while_another_is_sound(bundle):
    """It would be the least loaded: nothing is over sooner than what fails at once."""

    async def scenario():
        async with Pool(bundle) as pool:
            Faulty.faults["cpu:0"] = "raises, then hangs"  # the canary, which looks into it
            for _ in range(4):
                await pool.draw()
            assert pool.devices == {"cpu:0": True, "cpu:1": True}
            assert pool.concurrency == 1
            assert Faulty.drawn == {"cpu:0": 2, "cpu:1": 4}, "the batch that failed, and the canary"

    asyncio.run(scenario())


def test_a_batch_that_is_at_fault_itself_fails_at_each_engine_once(bundle):
    async def scenario():
        async with Pool(bundle, 3) as pool:
            with pytest.raises(EngineError, match="indices element out of data bounds"):
                await pool.draw(99)
            assert pool.failures == 3
            await happens(lambda: not any(one.suspect for one in pool.supervisors))
            assert pool.devices == {"cpu:0": True, "cpu:1": True, "cpu:2": True}
            await pool.draw()

    asyncio.run(scenario())


def test_an_engine_that_hangs_unnoticed_keeps_no_probe_waiting_and_is_asked_once(bundle):
    async def scenario():
        async with Pool(bundle, seconds=600) as pool:
            Faulty.faults["cpu:1"] = "hangs"
            for _ in range(3):
                await pool.check()
            assert pool.devices == {"cpu:0": True, "cpu:1": True}, "so nobody waited for its end"
            assert Faulty.drawn == {"cpu:0": 3, "cpu:1": 1}

    asyncio.run(scenario())


def test_an_engine_that_recovered_takes_what_it_had_lost_before(bundle):
    async def scenario():
        async with Pool(bundle) as pool:
            expected = await pool.draw()
            Faulty.faults["cpu:1"] = "raises"  # the next one's turn
            Faulty.held["cpu:0"] = asyncio.Event()
            Faulty.drawn.clear()
            batch = asyncio.create_task(pool.draw())
            await happens(lambda: Faulty.drawn["cpu:0"])
            await happens(lambda: not pool.devices["cpu:1"])
            Faulty.faults = {"cpu:0": "raises"}
            await happens(lambda: pool.devices["cpu:1"])
            Faulty.held["cpu:0"].set()
            assert np.array_equal(await batch, expected)
            assert pool.failures == 2

    asyncio.run(scenario())


def test_while_none_is_left_a_batch_ends_at_once(bundle):
    async def scenario():
        async with Pool(bundle) as pool:
            Faulty.faults = dict.fromkeys(["cpu:0", "cpu:1"], "raises")
            with pytest.raises(EngineError, match="out of order"):
                await pool.draw()
            await happens(lambda: pool.down)
            assert pool.down == "out of order"
            with pytest.raises(EngineDownError):
                await pool.draw()
            with pytest.raises(EngineDownError):
                await pool.check()
            Faulty.faults = {}
            await happens(lambda: pool.devices == {"cpu:0": True, "cpu:1": True})
            await pool.draw()

    asyncio.run(scenario())


# Over HTTP.


@pytest.fixture
def application(bundle, settings, monkeypatch):
    """Makes a client of a server with two engines."""
    monkeypatch.setitem(engine_selection.ENGINES, "onnxruntime", Faulty)

    def make(**more):
        two = {"models": bundle.folder.parent, "devices": "cpu,cpu", "max_batch_size": 2} | more
        return Client(create_app(settings.model_copy(update=two)))

    return make


class Load:
    """Clients that ask without a pause, in every class of work; counts what becomes of it."""

    def __init__(self, client):
        self.client = client
        self.answers: Counter[int | str] = Counter()
        self.expected = {}

    async def learn(self):
        """What each image is, while every engine works."""
        for label, seed in itertools.product((1, 2), range(20)):
            self.expected[label, seed] = (await self.ask(label, seed)).content

    async def ask(self, label, seed, priority="interactive"):
        body = {"class_label": label, "seed": seed}
        return await self.client.http.post("/generate", json=body, headers={"X-Priority": priority})

    async def __aenter__(self):
        self._ends = False
        self._clients = [asyncio.create_task(self._go_on(number)) for number in range(12)]

    async def __aexit__(self, *_):
        self._ends = True
        await asyncio.gather(*self._clients)

    async def _go_on(self, number):
        names = list(PRIORITIES)
        for turn in itertools.count(number):
            if self._ends:
                return
            label, seed = 1 + turn % 2, turn % 20
            answer = await self.ask(label, seed, names[turn % len(names)])
            right = answer.content == self.expected[label, seed]
            self.answers[answer.status_code if right else "another image"] += 1

    async def more(self, count=60):
        """Wait for so many further answers."""
        before = self.answers.total()
        await happens(lambda: self.answers.total() >= before + count or self._broken())

    def _broken(self):
        return any(client.done() for client in self._clients)


def up(client, device):
    registry = client.app.state.metrics.registry
    return registry.get_sample_value("sid_engine_up", MODEL | {"device": device})


def places(client):
    return client.app.state.metrics.registry.get_sample_value("sid_engine_places", MODEL)


@pytest.mark.parametrize(
    ("fault", "seconds"), [("raises", 60), pytest.param("hangs", 5, marks=pytest.mark.slow)]
)
def test_the_death_of_one_engine_under_load_loses_nothing(application, fault, seconds):
    with application(engine_seconds=seconds) as client:
        load = Load(client)

        async def scenario():
            await load.learn()
            all_places = places(client)
            Faulty.drawn.clear()
            Faulty.at_a_time.clear()
            async with load:
                await load.more()
                assert min(Faulty.drawn.values()) > 3, "both draw"
                Faulty.faults["cpu:1"] = fault
                await happens(lambda: up(client, "cpu:1") == 0)
                await load.more()
                ready = await client.http.get("/readyz")
                card = (await client.http.get("/models/tiny")).json()
                assert ready.status_code == 200
                assert card["devices"] == {"cpu:0": True, "cpu:1": False}
                assert up(client, "cpu:0") == 1
                assert places(client) == all_places / 2
                Faulty.faults.clear()
                await happens(lambda: up(client, "cpu:1") == 1)
                await happens(lambda: places(client) == all_places)
                Faulty.drawn.clear()
                await load.more()
                assert Faulty.drawn["cpu:1"] > 0, "it takes its share again"

        client.run(scenario())
        assert set(load.answers) == {200}
        assert max(Faulty.at_a_time.values()) <= places(client) / 2 + 1, "but for a canary"
        registry = client.app.state.metrics.registry
        assert registry.get_sample_value("sid_batch_failures_total", MODEL) >= 1


def test_engines_that_die_in_turn_under_load_lose_nothing(application):
    with application() as client:
        load = Load(client)

        async def scenario():
            await load.learn()
            async with load:
                for device in ["cpu:0", "cpu:1"] * 3:
                    Faulty.faults = {device: "raises"}
                    await happens(lambda device=device: up(client, device) == 0)
                    await load.more(10)
                    Faulty.faults = {}
                    await happens(lambda device=device: up(client, device) == 1)

        client.run(scenario())
        assert set(load.answers) == {200}


def test_a_wrong_canary_takes_one_engine_out_and_readiness_stays_green(application):
    with application() as client:
        load = Load(client)

        async def scenario():
            await load.learn()
            Faulty.faults["cpu:0"] = "differs"
            async with asyncio.timeout(60):
                while up(client, "cpu:0"):
                    assert (await client.http.get("/readyz")).status_code == 200
            async with load:
                await load.more()
            Faulty.faults.clear()
            await happens(lambda: up(client, "cpu:0") == 1)

        client.run(scenario())
        assert set(load.answers) == {200}


@pytest.mark.parametrize("devices", [None, "cpu", "cpu,cpu"])
def test_when_all_engines_are_down_the_model_is(application, devices):
    with application(devices=devices) as client:
        names = client.get("/models/tiny").json()["devices"]
        assert set(names) == ({"cpu:0", "cpu:1"} if devices == "cpu,cpu" else {"cpu:0"})

        async def scenario():
            Faulty.faults = dict.fromkeys(names, "raises")
            failed = await client.http.post("/generate", json={"class_label": 1})
            await happens(lambda: not any(up(client, device) for device in names))
            refused = await client.http.post("/generate", json={"class_label": 1})
            red = await client.http.get("/readyz")
            Faulty.faults = {}
            await happens(lambda: all(up(client, device) for device in names))
            again = await client.http.post("/generate", json={"class_label": 1})
            return failed, refused, red, again

        failed, refused, red, again = client.run(scenario())
        assert (failed.status_code, failed.json()["type"][-14:]) == (503, ":engine-failed")
        assert (refused.status_code, refused.json()["type"][-12:]) == (503, ":engine-down")
        assert int(refused.headers["retry-after"]) >= 1
        assert (red.status_code, red.json()["models"]) == (503, {"tiny": "out of order"})
        assert again.status_code == 200
        assert client.get("/readyz").status_code == 200
        rejections = MODEL | {"reason": "engine_down", "priority": "interactive"}
        registry = client.app.state.metrics.registry
        assert registry.get_sample_value("sid_rejections_total", rejections) == 1
