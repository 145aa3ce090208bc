"""Inputs beside noise and class, by name: what the manifest lists is asked for, and drawn."""

import asyncio
import io
import json
import re

import numpy as np
import onnxruntime
import pytest

from service.app import create_app
from service.bundle import latents
from service.engines.onnx import OnnxEngine
from service.settings import Settings
from tests.bundles import MIX, STYLE, write_bundle
from tests.service.client import Client

BODY = {"model": "styled", "class_label": 1, "seed": 3}


@pytest.fixture(scope="module", params=["embedded", "triton"])
def client(request, repository):
    """The real gateway with its own engine, and over the real Triton."""
    settings = Settings(models=repository.models)
    if request.param == "triton":
        address = request.getfixturevalue("triton").address
        settings = Settings(models=repository.models, triton=address)
    with Client(create_app(settings)) as client:
        yield client


@pytest.fixture
def embedded(repository):
    with Client(create_app(Settings(models=repository.models))) as client:
        yield client


def test_they_change_the_image_as_the_graph_does(client, repository):
    """Against a session of its own, which is fed by hand."""
    bundle = repository.bundle("styled")
    session = onnxruntime.InferenceSession(bundle.graph("model.onnx"))
    seen = set()
    for style, mix in ((0, [0.5, 0.5]), (3, [0.5, 0.5]), (3, [1, -2.25])):
        feeds = {
            "latents": latents([3], bundle.manifest.latent_shape),
            "class_labels": np.array([1]),
            "style": np.array([style]),
            "mix": np.float32([mix]),
        }
        (expected,) = session.run(["images"], feeds)
        ask = BODY | {"inputs": {"style": style, "mix": mix}}
        answer = client.generate(ask, accept="application/x-npy")
        assert np.array_equal(np.load(io.BytesIO(answer.content)), expected)
        assert json.loads(answer.headers["x-inputs"]) == {"style": style, "mix": mix}
        seen.add(answer.content)
    assert len(seen) == 3


def test_requests_with_different_values_share_batches_and_do_not_mix(client):
    asks = [
        BODY | {"seed": 7 + i % 3, "inputs": {"style": i % 5, "mix": [i / 60, 1]}}
        for i in range(60)
    ]
    before = batches(client)
    alone = [client.generate(ask).content for ask in asks]
    between = batches(client)

    async def together():
        answers = await asyncio.gather(*(client.http.post("/generate", json=ask) for ask in asks))
        return [answer.content for answer in answers]

    assert client.run(together()) == alone
    assert between - before == 60
    assert batches(client) - between < 60, "nothing was batched"


def batches(client) -> float:
    line = r'sid_batch_size_count\{[^}]*model="styled"[^}]*\} ([0-9.]+)'
    return float(re.search(line, client.get("/metrics").text)[1])


def test_what_is_not_named_has_its_default_and_the_server_is_ready(client):
    """The golden image, which the canary draws, is of the defaults."""
    assert client.get("/readyz").status_code == 200
    default = client.generate(BODY)
    assert json.loads(default.headers["x-inputs"]) == {"style": 1, "mix": [0.5, 0.5]}
    for inputs in ({}, {"style": 1}, {"style": 1.0, "mix": [0.5, 0.5]}):
        assert client.generate(BODY | {"inputs": inputs}).content == default.content


def test_json_says_what_each_image_had_and_other_models_have_none(embedded):
    answer = embedded.generate(BODY | {"n": 2, "inputs": {"style": 2}})
    assert [image["inputs"] for image in answer.json()["images"]] == [
        {"style": 2, "mix": [0.5, 0.5]}
    ] * 2
    plain = embedded.generate({"model": "grey", "seed": 1}, accept="application/json")
    assert plain.json()["images"][0]["inputs"] == {}
    assert "x-inputs" not in plain.headers


def test_the_models_card_lists_them(embedded):
    card = embedded.get("/models/styled").json()
    assert card["inputs"] == [
        {"name": "latents", "kind": "noise", "dtype": "float32", "shape": [4, 8, 8]},
        {"name": "class_labels", "kind": "class", "dtype": "int64", "shape": []},
        {
            "name": "style", "kind": "label", "dtype": "int64", "shape": [], "count": 5,
            "default": 1,
        },
        {
            "name": "mix", "kind": "vector", "dtype": "float32", "shape": [2],
            "default": [0.5, 0.5],
        },
    ]  # fmt: skip
    assert (card["images"], card["resolution"], card["channels"]) == ([16, 16, 1], 16, 1)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"style": 5}, "style takes a whole number from 0 to 4 (default 1), not 5"),
        ({"style": [1]}, "style takes a whole number from 0 to 4"),
        ({"style": "3"}, 'style takes a whole number from 0 to 4 (default 1), not "3"'),
        ({"style": True}, "(default 1), not true"),
        ({"mix": [1]}, "mix takes a list of 2 numbers (default [0.5, 0.5]), not [1]"),
        ({"mix": None}, "mix takes a list of 2 numbers (default [0.5, 0.5]), not null"),
        ({"colour": 1}, "styled has no input 'colour' that a request can name: it has style"),
        ({"latents": [1]}, "no input 'latents' that a request can name"),
        ([], "inputs: "),
    ],
)
def test_what_the_model_does_not_take_is_told_what_it_takes(embedded, inputs, says):
    refused = embedded.generate(BODY | {"inputs": inputs})
    assert refused.status_code == 422
    assert says in refused.json()["detail"]
    assert refused.headers["content-type"] == "application/problem+json"


def test_a_model_without_them_says_so(embedded):
    refused = embedded.generate({"model": "grey", "inputs": {"style": 1}})
    assert refused.status_code == 422
    assert refused.json()["type"].endswith(":input-not-taken")
    assert "grey has no input 'style' that a request can name: it has none" in refused.text


URL = "/generate?model=styled&class_label=1&seed=3"


def test_an_address_names_a_label_and_draws_what_post_draws(embedded):
    answer = embedded.get(f"{URL}&input.style=3")
    assert answer.content == embedded.generate(BODY | {"inputs": {"style": 3}}).content
    assert answer.headers["etag"] != embedded.get(URL).headers["etag"]
    default = embedded.get(f"{URL}&input.style=1")
    assert default.headers["etag"] == embedded.get(URL).headers["etag"]
    again = {"if-none-match": answer.headers["etag"]}
    assert embedded.get(f"{URL}&input.style=3", headers=again).status_code == 304
    assert embedded.get(f"{URL}&input.style=2", headers=again).status_code == 200


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("input.style=5", "style takes a whole number from 0 to 4"),
        ("input.style=x", "input.style: GET takes labels only, in digits (input.NAME=3)"),
        ("input.mix=0.5,0.5", "input.mix: GET takes labels only, in digits (input.NAME=3); POST"),
        ("input.mix=1", "mix takes a list of 2 numbers"),
        ("input.colour=1", "styled has no input 'colour'"),
        ("input.=1", "styled has no input ''"),
        ("input.style=1&input.style=2", "an input is named once, and here it is named twice"),
        ("inputs=1", "inputs: no such field, perhaps input.NAME"),
        ("inputs=1&input.style=1&style=1", "inputs: no such field, perhaps input.NAME; style: no"),
        ("input=1", "input: no such field, perhaps input.NAME"),
        ("style=1", "style: no such field; the fields are model, "),
    ],
)
def test_an_address_that_names_no_label_is_refused(embedded, query, says):
    refused = embedded.get(f"{URL}&{query}")
    assert refused.status_code == 422
    assert says in refused.json()["detail"]


def test_the_document_names_no_parameter_that_the_address_does_not_take(embedded):
    """It cannot say `input.NAME`, and `inputs=` would be refused."""
    operation = embedded.app.openapi()["paths"]["/generate"]["get"]
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert names == {"model", "class_label", "seed", "n", "toward", "mix"}


def test_the_same_address_at_the_same_time_is_drawn_once_and_another_is_not(tmp_path, monkeypatch):
    write_bundle(tmp_path, "styled", extra=[STYLE, MIX])
    generate, drawn = OnnxEngine.generate, []
    everybody_waits = asyncio.Event()

    async def counting(engine, prepare, finish, *deadline):
        await everybody_waits.wait()
        drawn.extend(prepare().inputs["style"])
        return await generate(engine, prepare, finish, *deadline)

    with Client(create_app(Settings(models=tmp_path))) as client:
        monkeypatch.setattr(OnnxEngine, "generate", counting)
        in_flight = client.app.state.catalogue.models["styled"].in_flight

        async def together():
            urls = [f"{URL}&input.style={i % 2}" for i in range(8)]
            asking = [asyncio.create_task(client.http.get(url)) for url in urls]
            while sum(in_flight._waiters.values()) < len(urls):  # noqa: ASYNC110 none tells
                await asyncio.sleep(0)
            everybody_waits.set()
            return await asyncio.gather(*asking)

        answers = client.run(together())
    assert sorted(drawn) == [0, 1]
    assert len({answer.content for answer in answers}) == 2
    assert len({answer.headers["etag"] for answer in answers}) == 2
