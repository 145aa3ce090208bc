"""SIGHUP: a model is upgraded under load, and not one request is refused for it."""

import asyncio
import json
import os
import shutil
import signal
import time
from collections import Counter

import httpx
import pytest

from service.bundle import load_manifest, write_manifest
from service.http.security import new_key
from tests.bundles import FOR_EVER, served_tag, write_bundle
from tests.service.test_process import serving
from tests.service.triton import triton_over
from tests.service.waiting import until

pytestmark = pytest.mark.slow


def upgrade(models, tmp_path):
    """Put version 2 of `tiny` in the place of 1, which stays in it, as `publish` does."""
    folder = write_bundle(tmp_path / "staging", "tiny", version=2, turns=1)
    shutil.copytree(models / "tiny" / "1", folder / "1")
    (models / "tiny").rename(tmp_path / "retired")
    folder.rename(models / "tiny")
    return served_tag(models / "tiny")


def logged(log, event):
    return [one for one in map(json.loads, log.read_text().splitlines()) if one["event"] == event]


async def draw_while(url, work, found):
    """Sixteen clients draw until `work` is done; counts how often each (status, model) came."""
    done = asyncio.Event()

    async def client(http, number):
        seed = number
        while not done.is_set():
            seed += 16
            answer = await http.post("/generate", json={"model": "tiny", "seed": seed})
            found[answer.status_code, answer.headers.get("x-model")] += 1

    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        clients = [asyncio.create_task(client(http, number)) for number in range(16)]
        await asyncio.to_thread(work)
        done.set()
        await asyncio.gather(*clients)


def hang_up(process, log, event):
    """Send SIGHUP and wait for what comes of it."""
    before = len(logged(log, event))
    process.send_signal(signal.SIGHUP)
    until(lambda: len(logged(log, event)) > before)


def test_an_upgrade_under_load_refuses_nobody(models, tmp_path):
    log = tmp_path / "log"
    old = served_tag(models / "tiny")
    found, tags = Counter(), {}
    with serving(models, log=log, SID_LOG_FORMAT="json") as (process, url):

        def shown():
            lines = httpx.get(f"{url}/metrics").text.splitlines()
            return [line for line in lines if line.startswith("sid_model_info{")]

        def work():
            until(lambda: found[200, old] > 50)
            tags["new"] = upgrade(models, tmp_path)
            hang_up(process, log, "reloaded")
            until(lambda: found[200, tags["new"]] > 50)
            time.sleep(1.5)  # longer than the old one stays; on a slow machine less is tried
            tags["shown"] = shown()

        asyncio.run(draw_while(url, work, found))
        assert httpx.get(f"{url}/readyz").status_code == 200
    assert set(found) == {(200, old), (200, tags["new"])}
    assert len(tags["shown"]) == 1
    assert 'version="2"' in tags["shown"][0]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"golden_seed": 8}, "differ from the golden image"),
        ({"truncated": True}, "not the file that was published"),
    ],
)
def test_what_cannot_be_served_is_refused_and_all_stays_as_it_is(models, tmp_path, broken, reason):
    log = tmp_path / "log"
    old = served_tag(models / "tiny")
    with serving(models, log=log, SID_LOG_FORMAT="json") as (process, url):
        upgrade(models, tmp_path)
        write_bundle(models, "another")  # all or nothing: this one would do
        folder = models / "tiny"
        if "golden_seed" in broken:
            manifest = load_manifest(folder)
            golden = manifest.golden
            image = golden.images[0].model_copy(update={"seed": 8})
            wrong = golden.model_copy(update={"images": [image]})
            write_manifest(folder, manifest.model_copy(update={"golden": wrong}))
        else:
            (folder / "2" / "model.onnx").write_bytes(b"half")
        hang_up(process, log, "reload refused, all is served as before")
        answer = httpx.post(f"{url}/generate", json={"seed": 1})
        assert (answer.status_code, answer.headers["x-model"]) == (200, old)
        assert httpx.get(f"{url}/readyz").json()["models"] == ["tiny"]
        metrics = httpx.get(f"{url}/metrics").text
    (line,) = logged(log, "reload refused, all is served as before")
    assert reason in line["reason"]
    assert 'sid_engine_up{device="cpu:0",model="tiny"} 1.0' in metrics
    assert 'sid_engine_up{device="cpu:0",model="another"}' not in metrics


def test_models_come_and_go_and_what_stays_is_not_opened_again(models, tmp_path):
    log = tmp_path / "log"
    write_bundle(models, "leaves", turns=FOR_EVER)
    with serving(models, log=log, SID_LOG_FORMAT="json", SID_GRACE_SECONDS="1") as (process, url):
        (models / "leaves").rename(tmp_path / "left")
        write_bundle(models, "comes", classes=[])
        hang_up(process, log, "reloaded")
        assert httpx.get(f"{url}/readyz").json()["models"] == ["comes", "tiny"]
        for name, status in (("comes", 200), ("tiny", 200), ("leaves", 404)):
            answer = httpx.post(f"{url}/generate", json={"model": name, "seed": 2})
            assert answer.status_code == status
        metrics = httpx.get(f"{url}/metrics").text
        assert 'sid_engine_up{device="cpu:0",model="leaves"}' not in metrics
        assert 'sid_queue_depth{model="comes",priority="interactive"} 0' in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in log.read_text()


def test_keys_are_reloaded_with_the_models_both_or_neither(models, tmp_path):
    log, file = tmp_path / "log", tmp_path / "keys"
    old, new = new_key("alice"), new_key("bob")
    file.write_text(old.line)
    with (
        serving(models, log=log, SID_LOG_FORMAT="json", SID_KEYS=str(file)) as (process, url),
        httpx.Client(base_url=url) as http,  # one connection: what was let in once is asked again
    ):

        def statuses():
            keys = (old.secret, new.secret)
            return [http.get("/models", headers={"x-api-key": key}).status_code for key in keys]

        assert statuses() == [200, 403]
        # A broken file, or none, or a broken model: all stays.
        model = (models / "tiny" / "1" / "model.onnx").read_bytes()
        for content, graph, reason in (
            (f"{new.line}\nnonsense", model, "line 2: not `name:sha256`"),
            ("", model, "holds no key"),
            (None, model, "No such file"),
            (new.line, b"half", "not the file that was published"),
        ):
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_text(content)
            (models / "tiny" / "1" / "model.onnx").write_bytes(graph)
            hang_up(process, log, "reload refused, all is served as before")
            assert statuses() == [200, 403]
            last = logged(log, "reload refused, all is served as before")[-1]
            assert reason in last["reason"]
        (models / "tiny" / "1" / "model.onnx").write_bytes(model)
        write_bundle(models, "another")
        hang_up(process, log, "reloaded")
        assert statuses() == [403, 200]
        served = http.get("/models", headers={"x-api-key": new.secret}).json()["models"]
        assert [one["name"] for one in served] == ["another", "tiny"]
    assert "Traceback" not in log.read_text()
    assert logged(log, "reloaded")[0]["keys"] == 1


def test_over_triton_both_versions_are_served_while_gateways_go_over(models, tmp_path):
    log = tmp_path / "log"
    old = served_tag(models / "tiny")
    found, tags = Counter(), {}
    with (
        triton_over(models) as triton,
        serving(models, log=log, SID_LOG_FORMAT="json", SID_TRITON=triton.address) as (
            process,
            url,
        ),
    ):

        def work():
            until(lambda: found[200, old] > 50)
            tags["new"] = upgrade(models, tmp_path)
            # Too early: Triton has not loaded it.
            hang_up(process, log, "reload refused, all is served as before")
            triton.load("tiny")
            before = found[200, old]
            until(lambda: found[200, old] > before + 50)
            hang_up(process, log, "reloaded")
            until(lambda: found[200, tags["new"]] > 50)

        asyncio.run(draw_while(url, work, found))
    assert set(found) == {(200, old), (200, tags["new"])}


def test_a_reload_that_hangs_is_said_and_stops_nothing(models, tmp_path):
    """A named pipe in place of a manifest is read as a file of a dead network drive is."""
    log = tmp_path / "log"
    with serving(models, log=log, SID_LOG_FORMAT="json") as (process, url):
        manifest = models / "tiny" / "manifest.json"
        kept = manifest.read_bytes()
        manifest.unlink()
        os.mkfifo(manifest)
        hang_up(
            process,
            log,
            "the reload takes long, all is served as before: can the models and keys be read?",
        )
        assert httpx.post(f"{url}/generate", json={"seed": 1}).status_code == 200
        assert not logged(log, "reloaded")
        manifest.write_bytes(kept)  # whoever waits at the other end reads it
        until(lambda: logged(log, "reloaded"))


def test_reloads_in_a_hurry_and_a_sigterm_in_the_middle_of_one_end_in_order(models, tmp_path):
    log = tmp_path / "log"
    write_bundle(tmp_path / "late", "late")
    with serving(models, log=log, SID_LOG_FORMAT="json") as (process, _):
        for _ in range(3):
            (tmp_path / "late" / "late").rename(models / "late")
            process.send_signal(signal.SIGHUP)
            time.sleep(0.05)
            (models / "late").rename(tmp_path / "late" / "late")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    text = log.read_text()
    assert "Traceback" not in text
    assert "left behind" not in text
