"""The catalogue, the probes and the metrics."""

import json
import re
from itertools import product

import pytest

from service.app import create_app
from service.bundle import BundleError, load_bundle
from service.exceptions import reasons
from service.priority import PRIORITIES
from service.serving.catalogue import ModelRequiredError, UnknownModelError, pick
from service.settings import Settings
from tests.bundles import CLOTHES, write_bundle
from tests.service.client import Client


def test_the_catalogue_comes_from_the_manifests(client, models):
    (card,) = client.get("/models").json()["models"]
    assert card == client.get("/models/tiny").json()
    assert card["classes"] == CLOTHES
    assert card["resolution"] == 8
    assert card["steps"] == 1
    assert card["licence"] == "Apache-2.0"
    assert card["digest"] == load_bundle(models / "tiny").digest
    assert card["engine"].startswith("onnxruntime ")
    assert not {"golden", "files"} & set(card)


@pytest.mark.usefixtures("bfloat16")
def test_the_catalogue_says_what_is_served_and_how_far_off_it_may_be(client, tmp_path):
    plain = client.get("/models/tiny").json()
    assert (plain["precision"], plain["graph"]) == ("float32", None)
    write_bundle(tmp_path / "many", graphs=["model.bfloat16.onnx"])
    settings = Settings(models=tmp_path / "many", engine="openvino", precision="bfloat16")
    with Client(create_app(settings)) as other:
        card = other.get("/models/tiny").json()
        metrics = other.get("/metrics").text
    assert card["precision"] == card["graph"]["precision"] == "bfloat16"
    assert card["graph"]["bounds"]["max_difference"] == 8
    assert card["graph"]["measured"]["batch_difference"] == 0
    assert 'precision="bfloat16",version="1"} 1.0' in metrics


def test_ready_means_that_every_model_drew_its_canary(models, settings):
    write_bundle(models, "without-golden", golden=False)
    write_bundle(models, "plain", classes=[], golden=False)
    with Client(create_app(settings)) as client:
        answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "models": ["plain", "tiny", "without-golden"]}


def test_a_model_that_draws_other_images_than_published_is_not_ready(models, settings):
    path = models / "tiny" / "manifest.json"
    metadata = json.loads(path.read_text())
    metadata["golden"]["images"][0]["seed"] = 8
    path.write_text(json.dumps(metadata))
    with Client(create_app(settings)) as client:
        red = client.get("/readyz")
    assert red.status_code == 503
    assert "differ from the golden image" in red.json()["models"]["tiny"]


def test_a_broken_bundle_does_not_start(models, settings):
    (models / "tiny" / "1" / "model.onnx").write_bytes(b"")
    client = Client(create_app(settings))
    with pytest.raises(BundleError, match=r"1/model\.onnx"):
        client.__enter__()


def test_metrics_name_what_happened(client):
    client.generate({"class_label": 0, "seed": 1})
    client.generate({"class_label": 99})
    client.get("/nowhere/1")
    client.get("/nowhere/2")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'sid_requests_total{model="tiny",route="/generate",status="200"} 1.0',
        'sid_requests_total{model="tiny",route="/generate",status="422"} 1.0',
        'sid_requests_total{model="",route="other",status="404"} 2.0',
        'sid_batch_size_count{model="tiny"} 1.0',
        *(f'sid_queue_depth{{model="tiny",priority="{one}"}} 0.0' for one in PRIORITIES),
        'sid_image_seconds_count{model="tiny",priority="interactive"} 1.0',
        'sid_image_seconds_count{model="tiny",priority="bulk"} 0.0',
        *(
            f'sid_stage_seconds_count{{model="tiny",stage="{stage}"}} 1.0'
            for stage in ("queue", "latents", "engine", "encode", "total")
        ),
    ):
        assert line in answer.text.splitlines()
    assert 'sid_model_info{digest="' in answer.text


def test_what_can_be_counted_stands_at_0_from_the_start(client):
    """A rate needs a sample before the first event; no request may make a series of its own."""

    def series():
        samples = (line.rpartition(" ") for line in client.get("/metrics").text.splitlines())
        return {
            name: float(value)
            for name, _, value in samples
            if name.startswith("sid_") and 'route="/metrics"' not in name
        }

    client.get("/metrics")
    before = series()
    counters = {name: value for name, value in before.items() if re.match(r"\w+_total\{", name)}
    assert not any(counters.values())
    refused = {
        f'sid_rejections_total{{model="tiny",priority="{priority}",reason="{reason}"}}'
        for priority, reason in product(PRIORITIES, reasons())
    }
    late = {
        f'sid_requests_total{{model="tiny",route="/generate",status="{status}"}}'
        for status in (429, 499, 500, 503, 504)
    }
    assert refused | late <= set(counters)

    tag = client.get("/generate?seed=7").headers["etag"]
    statuses = [
        client.get("/generate?seed=7", headers={"if-none-match": tag}).status_code,
        client.generate({"seed": -1}).status_code,
        client.generate({"seeds": 1}).status_code,
        client.generate({"n": 10**6}).status_code,
        client.generate({"model": "none"}).status_code,
        client.generate({}, accept="text/html").status_code,
        client.generate({}, **{"x-deadline-ms": "soon"}).status_code,
        client.request("POST", "/generate", content=b"seed=1").status_code,
        client.request("DELETE", "/generate").status_code,
    ]
    assert statuses == [304, 422, 422, 413, 404, 406, 400, 415, 405]
    after = series()
    assert set(after) == set(before)
    answered = [name for name in counters if "requests" in name and after[name]]
    assert len(answered) == len({200, *statuses}) + 1, "of 422, once with and once without a model"


def test_the_limits_beside_which_a_load_is_read(client, settings):
    lines = client.get("/metrics").text.splitlines()
    assert f"sid_queue_limit {float(settings.queue_size)}" in lines
    assert (
        f'sid_engine_places{{model="tiny"}} {float(settings.batches_at_a_time("onnxruntime"))}'
        in lines
    )
    (memory,) = (line for line in lines if line.startswith("sid_memory_limit_bytes "))
    assert 2**20 < float(memory.split()[1]) < 2**60


def test_the_openapi_document_resolves_every_reference(client):
    document = client.get("/openapi.json").json()
    references = set()

    def walk(node):
        if isinstance(node, dict):
            references.update(value for key, value in node.items() if key == "$ref")
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                walk(child)

    walk(document)
    assert references
    for reference in references:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_the_only_model_is_the_default():
    assert pick(["a"], None) == pick(["a", "b"], "a") == pick(["b", "a"], None, "a") == "a"
    with pytest.raises(ModelRequiredError, match="a, b"):
        pick(["b", "a"], None)
    with pytest.raises(UnknownModelError, match="'c': there is a, b"):
        pick(["b", "a"], "c")
