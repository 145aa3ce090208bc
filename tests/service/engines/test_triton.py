"""The gateway over the real Triton server: batches, refusals, deadlines, and servers that die."""

import asyncio
import itertools
import shutil
import signal
import time
from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import httpx
import numpy as np
import onnxruntime
import pytest

from distill.export.triton import triton_config
from service.app import create_app
from service.bundle import PLAN, latents, load_bundle, sha256_file, variant, write_manifest
from service.engines import EngineBusyError, EngineDeadlineError, EngineError
from service.engines.triton import TritonEngine
from service.serving.engine_selection import make_engines
from service.settings import Settings
from tests.bundles import A_WHILE, compute, republished, write_bundle
from tests.service.client import Client
from tests.service.test_process import serving
from tests.service.triton import Triton, triton_over
from tests.service.waiting import happens, turns, until

pytestmark = pytest.mark.slow

SLOW = {"class_label": 0}  # asks for an image that takes a while


class Answered(NamedTuple):
    """When a request was sent, how long it took (seconds), and what came."""

    sent: float
    seconds: float
    status: int
    retry_after: int

    @property
    def ended(self) -> float:
        return self.sent + self.seconds


@pytest.fixture(scope="module")
def busy_models(tmp_path_factory):
    """A model that takes its time; one request may wait for it in Triton."""
    models = tmp_path_factory.mktemp("busy")
    write_bundle(models, "slow", turns=A_WHILE, triton={"queue_requests": 1})
    return models


@pytest.fixture(scope="module")
def slow_triton(busy_models):
    with triton_over(busy_models) as triton:
        yield triton


@pytest.fixture
def busy(slow_triton):
    """That server, with nothing left of the test before."""
    until(lambda: not slow_triton.counter("nv_inference_pending_request_count"))
    with gateway(slow_triton) as client:  # two may still be computed: they end before this one
        until(lambda: client.generate(SLOW).status_code == 200)
    return slow_triton


@pytest.fixture
def own(models):
    """A server that the test may kill, over `models`."""
    with triton_over(models) as triton:
        yield triton


@contextmanager
def gateway(*servers: Triton, **settings):
    """The application over these servers, in this process."""
    addresses = ",".join(server.address for server in servers)
    with Client(create_app(Settings(models=servers[0].models, triton=addresses, **settings))) as c:
        yield c


def engine(triton, bundle, **settings):
    return TritonEngine(
        bundle,
        **({"addresses": [triton.address], "max_batch_size": 8, "concurrency": 4} | settings),
    )


async def send(client, bodies, **headers):
    return await asyncio.gather(
        *(client.http.post("/generate", json=body, headers=headers) for body in bodies)
    )


def test_images_are_those_of_the_embedded_engine(repository, triton):
    ask = {"model": "grey", "class_label": 1, "seed": 3, "n": 5}
    with Client(create_app(Settings(models=repository.models))) as embedded:
        expected = embedded.generate(ask, accept="application/x-npy").content
    with gateway(triton) as client:
        answer = client.generate(ask, accept="application/x-npy")
        card = client.get("/models/grey").json()
    assert answer.content == expected
    assert card["engine"] == "triton 2.51.0"
    assert card["precision"] == "float32"


def test_a_precision_that_triton_does_not_serve_is_refused(repository):
    """Before anything is asked of it: nobody listens there."""
    bundle = repository.bundle("grey")
    settings = Settings(triton="127.0.0.1:1", precision="float16")
    with pytest.raises(EngineError, match=r"triton computes model\.onnx, in float32, .* float16"):
        asyncio.run(make_engines(bundle, settings))


FLOAT16 = "model.float16.onnx"


@pytest.fixture(scope="module")
def float16_triton(tmp_path_factory):
    """It serves models in float16, which draw their golden images as nearly as float16 may.

    Those of `off` are further off than that.
    """
    models = tmp_path_factory.mktemp("float16")
    for name, levels in (("near", 2), ("off", 3)):
        folder = write_bundle(models, name, graphs=[FLOAT16], triton={"graph": FLOAT16})
        golden = load_bundle(folder).manifest.golden
        (image,) = golden.images
        pixels = image.pixels().astype(int)
        first = pixels.reshape(-1)[:5]
        first += np.where(first < 128, levels, -levels)
        moved = image.from_pixels(
            pixels.astype(np.uint8), class_label=image.class_label, seed=image.seed
        )
        republished(folder, golden=golden.model_copy(update={"images": [moved]}))
    with triton_over(models) as triton:
        yield triton


def test_float16_is_held_to_its_own_bounds_and_named_by_every_answer(float16_triton):
    near, off = (load_bundle(float16_triton.models / name) for name in ("near", "off"))
    with gateway(float16_triton, default_model="near") as client:
        red = client.get("/readyz").json()["detail"]
        answer = client.generate({"model": "near", "seed": 3})
        card = client.get("/models/near").json()
        assert client.generate({"model": "off", "seed": 3}).status_code == 503
    assert answer.status_code == 200
    assert answer.headers["x-model"] == f"{near.tag}:float16"
    assert (card["precision"], card["graph"]["precision"]) == ("float16", "float16")
    assert "off: class 2" in red
    assert "near" not in red
    session = onnxruntime.InferenceSession(near.graph(FLOAT16))
    for bundle in (near, off):  # and float32's bounds are narrower than what `near` needs
        (image,) = bundle.manifest.golden.images
        feed = {
            "latents": latents([image.seed], (1, 8, 8)),
            "class_labels": np.array([image.class_label]),
        }
        (pixels,) = session.run(["images"], feed)[0]
        assert bundle.manifest.golden.mismatch(image, pixels)
        allowed = bundle.tolerance(FLOAT16)
        assert bool(bundle.manifest.golden.mismatch(image, pixels, allowed)) == (bundle is off)


def test_another_graph_in_triton_than_the_bundle_says_is_never_taken_for_it(
    float16_triton, tmp_path
):
    models = tmp_path / "models"
    shutil.copytree(float16_triton.models, models)
    bundle = load_bundle(models / "near")
    (models / "near" / "config.pbtxt").write_text(triton_config(bundle.manifest))
    with Client(create_app(Settings(models=models, triton=float16_triton.address))) as client:
        detail = client.get("/readyz").json()["detail"]
        assert client.generate({"model": "near"}).status_code == 503
    assert (
        f"near: Triton serves {FLOAT16}, and the bundle's config.pbtxt names model.onnx" in detail
    )


def test_the_precision_asked_for_is_that_of_the_graph_that_triton_serves(float16_triton):
    bundle = load_bundle(float16_triton.models / "near")
    settings = Settings(triton="127.0.0.1:1", precision="float16")
    (engine,) = asyncio.run(make_engines(bundle, settings))
    assert engine.filename == FLOAT16
    with pytest.raises(EngineError, match=r"triton computes model\.float16\.onnx, in float16"):
        asyncio.run(make_engines(bundle, Settings(triton="127.0.0.1:1", precision="float32")))


def test_a_plan_is_named_by_its_precision_and_held_to_its_bounds(tmp_path):
    folder = write_bundle(tmp_path, graphs=[FLOAT16], triton={"graph": PLAN})
    manifest = load_bundle(folder).manifest
    (folder / "1" / PLAN).write_bytes(b"for one kind of GPU")
    files = manifest.files | {f"1/{PLAN}": sha256_file(folder / "1" / PLAN)}
    graphs = manifest.graphs | {PLAN: manifest.graphs[FLOAT16]}
    write_manifest(folder, manifest.model_copy(update={"files": files, "graphs": graphs}))
    bundle = load_bundle(folder)
    one = TritonEngine(bundle, addresses=["127.0.0.1:1"], max_batch_size=8, concurrency=4)
    assert (one.filename, one.precision) == (PLAN, "float16")
    assert variant(one.filename, one.precision) == "float16-plan"
    assert bundle.tolerance(one.filename) == bundle.tolerance(FLOAT16)


def test_a_configuration_that_names_no_file_of_the_bundle_is_refused(tmp_path):
    folder = write_bundle(tmp_path, triton={"graph": PLAN})
    with pytest.raises(EngineError, match=r"config\.pbtxt names model\.plan, which is none of"):
        asyncio.run(make_engines(load_bundle(folder), Settings(triton="127.0.0.1:1")))


def test_requests_at_the_same_time_are_batched_by_triton_s_own_count(triton):
    def counted():
        names = ("nv_inference_count", "nv_inference_exec_count")
        return np.array([triton.counter(name, model="colour") for name in names])

    bodies = [{"model": "colour", "seed": seed} for seed in range(64)]
    with gateway(triton, concurrency=32, max_batch_size=1) as client:
        for _ in range(50):  # as often as it takes until some come while Triton computes others
            before = counted()
            answers = client.run(send(client, bodies))
            images, batches = counted() - before
            assert {answer.status_code for answer in answers} == {200}
            assert images == 64
            if batches < 60:  # of requests that each brought one image
                return
    pytest.fail("Triton computed each image by itself")


def test_a_full_queue_in_triton_is_429_and_no_failure(busy):
    with gateway(busy, concurrency=16, max_batch_size=1) as client:
        answers = []

        def some_were_refused() -> bool:
            answers.extend(client.run(send(client, [SLOW] * 16)))
            return any(answer.status_code == 429 for answer in answers)

        until(some_were_refused)  # on a busy machine they may come one after the other
        found = Counter(answer.status_code for answer in answers)
        assert set(found) == {200, 429}
        assert found[200] >= 3  # two computed, one waited
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.json()["type"] for answer in refused} == {"urn:sid-serve:problem:queue-full"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        registry = client.app.state.metrics.registry
        reason = {"model": "slow", "reason": "engine_busy", "priority": "interactive"}
        assert registry.get_sample_value("sid_rejections_total", reason) == len(refused)
        assert registry.get_sample_value("sid_batch_failures_total", {"model": "slow"}) == 0
        assert client.get("/readyz").status_code == 200


def test_a_deadline_in_triton_is_504_and_no_failure(busy):
    with gateway(busy, concurrency=3, max_batch_size=1) as client:
        answers = client.run(send(client, [SLOW] * 3, **{"X-Deadline-Ms": "100"}))
        assert [answer.status_code for answer in answers] == [504, 504, 504]
        assert client.get("/readyz").status_code == 200


def test_a_deadline_that_has_passed_is_told_apart_from_a_failure(busy_models, busy):
    async def scenario():
        bundle = load_bundle(busy_models / "slow")
        slow = engine(busy, bundle)
        await slow.open()
        z, labels = latents([0], bundle.manifest.latent_shape), np.zeros(1, np.int64)
        now = asyncio.get_running_loop().time
        working = [asyncio.create_task(compute(slow, z, labels)) for _ in range(2)]
        await asyncio.sleep(0.05)
        for deadline in (now() + 0.05, now()):
            with pytest.raises(EngineDeadlineError):
                await compute(slow, z, labels, deadline)
        await asyncio.gather(*working)
        await slow.close()

    asyncio.run(scenario())


def test_what_nobody_waits_for_any_more_is_cancelled_in_triton(busy):
    def cancelled():
        return busy.counter("nv_inference_request_failure", reason="CANCELED")

    async def leave(client):
        calls = []
        for _ in range(3):  # two at once may be one batch for Triton; of six, one waits at least
            calls.append(asyncio.create_task(send(client, [SLOW, SLOW])))
            await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    with gateway(busy, concurrency=6, max_batch_size=1) as client:
        before = cancelled()

        def left_one_in_the_queue() -> bool:
            client.run(leave(client))  # on a fast machine nothing may wait at the moment of leaving
            return cancelled() > before

        until(left_one_in_the_queue)
        until(lambda: client.generate({"seed": 1}).status_code == 200)  # what computes, ends first


def test_kill_9_under_load_is_503_at_once_and_over_after_its_return(own, tmp_path):
    """In real processes: no request hangs, and none is answered with anything else."""
    log = tmp_path / "log"
    answers: list[Answered] = []

    async def client(http, done):
        for seed in itertools.count():
            if done.is_set():
                return
            sent = time.monotonic()
            answer = await http.post("/generate", json={"seed": seed})
            retry_after = int(answer.headers.get("retry-after", 0))
            seconds = time.monotonic() - sent
            answers.append(Answered(sent, seconds, answer.status_code, retry_after))

    async def many_more(status):
        known = len(answers)
        await happens(lambda: [one.status for one in answers[known:]].count(status) > 100)

    async def load(url):
        times, done = {}, asyncio.Event()
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            clients = [asyncio.create_task(client(http, done)) for _ in range(8)]
            await many_more(200)
            own.kill()
            times["killed"] = time.monotonic()
            await many_more(503)
            assert (await http.get("/readyz")).status_code == 503
            times["starts"] = time.monotonic()
            await asyncio.to_thread(own.start)
            async with asyncio.timeout(30):
                while (await http.get("/readyz")).status_code != 200:
                    pass
            times["back"] = time.monotonic()
            await many_more(200)
            done.set()
            await asyncio.gather(*clients)
        return times

    with serving(own.models, log=log, SID_TRITON=own.address) as (process, url):
        times = asyncio.run(load(url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert max(answer.seconds for answer in answers) < 10
    for answer in answers:
        assert answer.status in (200, 503)
        assert answer.status == 200 or answer.retry_after >= 1
        if answer.ended < times["killed"] or answer.sent > times["back"]:
            assert answer.status == 200, f"{answer} {times}"
    down = [one for one in answers if times["killed"] < one.sent and one.ended < times["starts"]]
    assert {answer.status for answer in down} == {503}
    seconds = np.median([answer.seconds for answer in down])
    assert seconds < 0.9, "at once: waiting for Triton would take a second or more"
    assert "Traceback" not in log.read_text()


def test_a_model_that_triton_has_unloaded_is_not_ready(own):
    with gateway(own) as client:
        assert client.get("/readyz").status_code == 200
        own.unload("tiny")
        red = client.get("/readyz")
        assert red.status_code == 503
        assert "not" in red.json()["detail"]
        assert client.generate({}).status_code == 503
        own.load("tiny")
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.generate({}).status_code == 200


def test_a_server_that_freezes_is_noticed_and_used_again_when_it_thaws(own):
    with gateway(own, engine_seconds=0.5) as client:
        assert client.generate({}).status_code == 200
        own.signal(signal.SIGSTOP)
        try:
            failed, refused = client.generate({}), client.generate({})
            assert (failed.status_code, refused.status_code) == (503, 503)
            assert failed.json()["type"].endswith(":engine-failed")
            assert refused.json()["type"].endswith(":engine-down"), "so nobody waited for Triton"
        finally:
            own.signal(signal.SIGCONT)
        until(lambda: client.get("/readyz").status_code == 200)
        assert client.generate({}).status_code == 200


def test_the_gateway_starts_before_triton_and_is_ready_when_it_is(models):
    triton = Triton(models)
    with gateway(triton) as client:
        assert client.get("/readyz").status_code == 503
        assert client.generate({}).status_code == 503
        triton.start()
        try:
            until(lambda: client.get("/readyz").status_code == 200)
            assert client.generate({}).status_code == 200
            lines = client.get("/metrics").text.splitlines()
            (info,) = [line for line in lines if line.startswith("sid_model_info{")]
            assert 'engine_version="2.51.0"' in info
        finally:
            triton.stop()


def test_two_servers_share_the_load_and_the_death_of_one_costs_no_image(own, models):
    with triton_over(models) as second:

        async def scenario(client):
            pending = [
                asyncio.create_task(client.http.post("/generate", json={"seed": seed}))
                for seed in range(200)
            ]
            await asyncio.sleep(0.05)
            second.kill()
            answers = await asyncio.gather(*pending)
            more = await send(client, [{"seed": seed} for seed in range(50)])
            return Counter(answer.status_code for answer in [*answers, *more])

        with gateway(own, second, max_batch_size=1) as client:
            client.run(send(client, [{"seed": seed} for seed in range(40)]))
            shares = [one.counter("nv_inference_request_success") for one in (own, second)]
            assert min(shares) >= 12
            assert client.run(scenario(client)) == {200: 250}


def test_one_server_that_lacks_the_model_is_passed_over_by_probes_too(own, models):
    with triton_over(models) as second, gateway(own, second) as client:
        second.unload("tiny")
        for seed in range(12):
            assert client.get("/readyz").status_code == 200
            assert client.generate({"seed": seed}).status_code == 200


def test_one_name_that_stands_for_nothing_does_not_take_the_others_down(repository, triton):
    async def scenario():
        bundle = repository.bundle("grey")
        both = engine(triton, bundle, addresses=["no.such.host:1", triton.address])
        await both.open()
        await both.check()
        await both.close()

    asyncio.run(scenario())


def test_what_waits_too_long_in_triton_s_queue_is_429_and_the_canary_may_wait_too(tmp_path):
    """Triton's own limit is nobody's deadline: the server is busy, and nothing is wrong with it."""
    folder = write_bundle(tmp_path / "models", "slow", turns=A_WHILE)
    config = folder / "config.pbtxt"
    limit = "default_timeout_microseconds: 10000000"
    assert limit in config.read_text()
    config.write_text(config.read_text().replace(limit, "default_timeout_microseconds: 5000"))
    with (
        triton_over(folder.parent) as own,
        gateway(own, concurrency=10, max_batch_size=1) as client,
    ):

        async def overload():
            answers, probes = [], []
            for _ in range(10):  # what comes while both instances compute, waits too long
                answers.append(asyncio.create_task(client.http.post("/generate", json=SLOW)))
                probes.append(asyncio.create_task(client.http.get("/readyz")))
                await asyncio.sleep(0.03)
            return await asyncio.gather(*answers), await asyncio.gather(*probes)

        seen = set()

        def both_were_seen() -> bool:
            answers, probes = client.run(overload())
            assert {probe.status_code for probe in probes} == {200}
            seen.update(answer.status_code for answer in answers)
            return len(seen) > 1  # on a busy machine all may come when the first two are done

        until(both_were_seen)
        assert seen == {200, 429}
        assert (
            client.get("/metrics").text.count('sid_engine_up{device="triton",model="slow"} 1.0')
            == 1
        )


def test_a_connection_that_hangs_is_noticed_however_short_the_deadlines_are(own):
    with gateway(own, engine_seconds=0.5) as client:
        assert client.generate({}).status_code == 200
        own.signal(signal.SIGSTOP)
        try:
            up = 'sid_engine_up{device="triton",model="tiny"} 1.0'
            deadline = {"X-Deadline-Ms": "200"}  # so no batch itself takes engine_seconds
            until(lambda: client.generate({}, **deadline).status_code == 503)
            assert up not in client.get("/metrics").text
        finally:
            # Not every Triton survives so many cancelled requests: what becomes of one that thaws
            # is tested above.
            own.signal(signal.SIGCONT)


def test_a_probe_across_a_restart_is_no_server_error(own):
    async def scenario():
        bundle = load_bundle(own.models / "tiny")
        one = engine(own, bundle)
        await one.open()
        own.signal(signal.SIGSTOP)
        try:
            checks = [asyncio.create_task(one.check()) for _ in range(2)]
            await turns()
            await one.restart()
            for error in await asyncio.gather(*checks, return_exceptions=True):
                assert isinstance(error, EngineError)
        finally:
            own.signal(signal.SIGCONT)
        await one.close()
        with pytest.raises(EngineError, match="not open"):
            await one.restart()

    asyncio.run(scenario())


def test_a_proxy_in_the_environment_is_not_asked(repository, triton, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")

    async def scenario():
        one = engine(triton, repository.bundle("grey"))
        await one.open()
        await one.check()
        await one.close()

    asyncio.run(scenario())


def test_batches_larger_than_triton_takes_are_refused_with_what_to_do(own):
    with gateway(own, max_batch_size=33) as client:
        detail = client.get("/readyz").json()["detail"]
    assert "batches of 32 at most" in detail
    assert "SID_MAX_BATCH_SIZE" in detail


def test_what_triton_says_of_each_failure(repository, triton):
    bundle = repository.bundle("grey")
    z, labels = latents([0], (1, 8, 8)), np.zeros(1, np.int64)

    async def scenario():
        files = {"7/model.onnx": "0" * 64}
        gone = bundle.manifest.model_copy(update={"version": 7, "files": files})
        missing = engine(triton, type(bundle)(gone, bundle.folder, "0"))
        await missing.open()
        with pytest.raises(EngineError, match=r"grey: Triton: .*version 7") as caught:
            await compute(missing, z, labels)
        assert type(caught.value) is EngineError
        with pytest.raises(EngineError, match="version 7"):
            await missing.check()
        await missing.close()

        nobody = engine(triton, bundle, addresses=["127.0.0.1:1"])
        await nobody.open()
        with pytest.raises(EngineError, match="Connection refused") as caught:
            await compute(nobody, z, labels)
        assert not isinstance(caught.value, EngineBusyError)
        await nobody.close()

        unknown = engine(triton, bundle, addresses=["no.such.host:1", "a..b:1"])
        await unknown.open()
        with pytest.raises(EngineError, match=r"no\.such\.host:1: .*; a\.\.b:1: "):
            await unknown.check()
        await unknown.close()

    asyncio.run(scenario())
