"""SID_ENGINE=auto: the fastest engine that draws the right picture, and why."""

import asyncio

import pytest
import structlog

from service.bundle import load_bundle, write_manifest
from service.engines import EngineError
from service.engines.choice import make_engine
from service.settings import Settings
from tests.bundles import write_bundle


def chosen(bundle, **settings):
    with structlog.testing.capture_logs() as lines:
        engine = asyncio.run(make_engine(bundle, Settings(engine="auto", **settings)))
    return engine, [line for line in lines if line["event"] == "engine chosen"]


def test_it_says_which_engine_it_took_and_how_fast_each_was(tmp_path):
    engine, (line,) = chosen(load_bundle(write_bundle(tmp_path, "tiny")))
    assert line["engine"] == f"{engine.name} {engine.precision}"
    assert "images/s" in line["because"]
    assert {"onnxruntime", "openvino"} <= set(f"{line['engine']} {line['because']}".split())


def test_an_engine_that_draws_another_picture_is_never_taken(tmp_path):
    folder = write_bundle(tmp_path, "tiny")
    manifest = load_bundle(folder).manifest
    golden = manifest.golden
    wrong = golden.images[0].model_copy(update={"seed": 8})
    update = {"golden": golden.model_copy(update={"images": [wrong]})}
    write_manifest(folder, manifest.model_copy(update=update))
    with pytest.raises(EngineError, match="no engine that is installed can compute it") as refused:
        chosen(load_bundle(folder))
    assert "differ from the golden image" in str(refused.value)


def test_a_precision_restricts_it(tmp_path):
    with pytest.raises(EngineError, match="no engine that is installed can compute it in int8"):
        chosen(load_bundle(write_bundle(tmp_path, "tiny")), precision="int8")
