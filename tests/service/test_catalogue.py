"""The catalogue, the probes and the metrics."""

import json

import pytest

from service.app import create_app
from service.bundle import BundleError, load_bundle
from service.catalogue import ModelRequiredError, UnknownModelError, pick
from tests.bundles import CLOTHES, write_bundle
from tests.service.client import Client


def test_the_catalogue_comes_from_the_manifests(client, models):
    (card,) = client.get("/models").json()["models"]
    assert card == client.get("/models/tiny").json()
    assert card["classes"] == CLOTHES
    assert card["resolution"] == 8
    assert card["licence"] == "Apache-2.0"
    assert card["digest"] == load_bundle(models / "tiny").digest
    assert card["engine"].startswith("onnxruntime ")
    assert not {"golden", "files"} & set(card)


def test_ready_means_that_every_model_drew_its_canary(models, settings):
    write_bundle(models, "without-golden", golden=False)
    write_bundle(models, "plain", classes=[], golden=False)
    with Client(create_app(settings)) as client:
        answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "models": ["plain", "tiny", "without-golden"]}


def test_a_model_that_draws_other_pictures_than_published_is_not_ready(models, settings):
    path = models / "tiny" / "manifest.json"
    facts = json.loads(path.read_text())
    facts["golden"]["images"][0]["seed"] = 8
    path.write_text(json.dumps(facts))
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
        'sid_queue_depth{model="tiny"} 0.0',
        *(
            f'sid_stage_seconds_count{{model="tiny",stage="{stage}"}} 1.0'
            for stage in ("queue", "latents", "engine", "encode", "total")
        ),
    ):
        assert line in answer.text.splitlines()
    assert 'sid_model_info{digest="' in answer.text


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
    assert pick(["a"], None) == pick(["a", "b"], "a") == "a"
    with pytest.raises(ModelRequiredError, match="a, b"):
        pick(["b", "a"], None)
    with pytest.raises(UnknownModelError, match="'c': there is a, b"):
        pick(["b", "a"], "c")
