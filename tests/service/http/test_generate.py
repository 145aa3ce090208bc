"""POST /generate over HTTP, in process, on a real model."""

import asyncio
import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from service.app import create_app
from service.bundle import SEED_MAX, load_bundle
from tests.bundles import served_tag, write_bundle
from tests.service.client import Client


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_class_and_a_seed_give_an_image_and_say_so(client, models):
    answer = client.generate({"class_label": "dress", "seed": 7})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "7"
    assert answer.headers["x-class-label"] == "2"
    assert answer.headers["x-model"] == served_tag(models / "tiny")
    assert answer.headers["vary"] == "Accept"
    stages = re.findall(r"(\w+);dur=[0-9.]+", answer.headers["server-timing"])
    assert stages == ["queue", "latents", "engine", "encode"]
    golden = load_bundle(models / "tiny").manifest.golden.images[0]  # class 2, seed 7
    assert np.array_equal(pixels(answer.content), golden.pixels()[:, :, 0])


def test_colour_images_are_rgb(models, settings):
    write_bundle(models, "rgb", channels=3)
    with Client(create_app(settings)) as client:
        answer = client.generate({"model": "rgb", "seed": 1})
    assert pixels(answer.content).shape == (8, 8, 3)


def test_index_and_name_give_the_same_bytes(client):
    assert (
        client.generate({"class_label": 2, "seed": 7}).content
        == client.generate({"class_label": " DRESS ", "seed": 7}).content
    )


def test_a_whole_number_may_be_written_with_a_point(client):
    written = client.generate({"class_label": 2.0, "seed": 7.0, "n": 1.0})
    assert written.content == client.generate({"class_label": 2, "seed": 7}).content


def test_json_holds_the_same_image_and_what_it_shows(client):
    body = {"class_label": 1, "seed": SEED_MAX}
    answer = client.generate(body, accept="application/json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["model"] == answer.headers["x-model"]
    (image,) = answer.json()["images"]
    assert image["class_label"] == 1
    assert image["class_name"] == "Trouser"
    assert image["seed"] == SEED_MAX
    assert base64.b64decode(image["png"]) == client.generate(body).content


def test_the_same_seed_gives_the_same_bytes_whatever_else_is_in_flight(client):
    bodies = [{"class_label": i % 3, "seed": 100 + i} for i in range(64)]
    alone = [client.generate(body).content for body in bodies]

    async def together():
        posts = [client.http.post("/generate", json=body) for body in bodies]
        return [answer.content for answer in await asyncio.gather(*posts)]

    assert client.run(together()) == alone
    sizes = re.search(r"sid_batch_size_count.* ([0-9.]+)", client.get("/metrics").text)
    assert float(sizes[1]) < 64 + 64, "nothing was batched"


@pytest.mark.parametrize("body", [{}, None])
def test_what_is_left_out_is_drawn_and_reported(client, body):
    answers = [
        client.request("POST", "/generate", json=body, headers={"accept": "application/json"})
        if body is not None
        else client.request("POST", "/generate", headers={"accept": "application/json"})
        for _ in range(20)
    ]
    images = [answer.json()["images"][0] for answer in answers]
    assert len({image["seed"] for image in images}) == 20
    assert len({image["class_label"] for image in images}) > 1
    again = {"class_label": images[0]["class_label"], "seed": images[0]["seed"]}
    assert client.generate(again).content == base64.b64decode(images[0]["png"])


def test_an_unconditional_model_reports_no_class(tmp_path, settings):
    write_bundle(tmp_path / "plain-models", "plain", classes=[])
    with Client(create_app(settings.model_copy(update={"models": tmp_path / "plain-models"}))) as c:
        answer = c.generate({"seed": 1}, accept="application/json")
        assert answer.json()["images"][0]["class_label"] is None
        assert "x-class-label" not in answer.headers
        refused = c.generate({"class_label": 0})
    assert refused.status_code == 422
    assert "plain is unconditional" in refused.json()["detail"]


def test_with_several_models_one_must_be_named(models, settings):
    write_bundle(models, "other")
    with Client(create_app(settings)) as client:
        refused = client.generate({"seed": 1})
        assert refused.status_code == 422
        assert "say which model: other, tiny" in refused.json()["detail"]
        assert client.generate({"model": "other", "seed": 1}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"class_label": 3}, 422, "0 to 2 (T-shirt/top, Trouser, Dress)"),
        ({"class_label": -1}, 422, "0 to 2 (T-shirt/top, Trouser, Dress)"),
        ({"class_label": "Coat"}, 422, "0 to 2 (T-shirt/top, Trouser, Dress)"),
        ({"class_label": True}, 422, "class_label: "),
        ({"class_label": 1.5}, 422, "class_label: "),
        ({"class_label": [1]}, 422, "class_label: "),
        ({"seed": -1}, 422, f"0 to {SEED_MAX}"),
        ({"seed": SEED_MAX + 1}, 422, f"0 to {SEED_MAX}"),
        ({"seed": "7"}, 422, "seed: "),
        ({"seed": 7.5}, 422, "seed: "),
        ({"seed": 2.0**54}, 422, "seed: "),
        ({"seed": float("nan")}, 422, "seed: "),
        ({"model": "nope"}, 404, "there is tiny"),
        ({"model": 1}, 422, "model: "),
        (
            {"class": 1, "sed": 2, "unicorn": 3},
            422,
            "class: no such field, perhaps class_label; sed: no such field, perhaps seed; unicorn: "
            "no such field; the fields are model, class_label, seed, n, toward, mix, inputs",
        ),
        ({"seed": "7", "classLabel": 1}, 422, "classLabel: no such field, perhaps class_label; "),
        ([], 422, "body: "),
        ("Dress", 422, "body: "),
    ],
)
def test_a_body_that_asks_for_what_there_is_not_is_told_what_there_is(client, body, status, says):
    headers = {"content-type": "application/json"}
    answer = client.request("POST", "/generate", content=json.dumps(body), headers=headers)
    assert answer.status_code == status
    assert says in answer.json()["detail"]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"{'a': 1}",
        b"\xff\xfe",
        b'{"seed": ' + b"9" * 5000 + b"}",
        b"[" * 60_000,
        b'{"class_label": "\\ud800"}',
    ],
)
def test_a_body_that_is_not_json_is_malformed(client, content):
    headers = {"content-type": "application/json"}
    answer = client.request("POST", "/generate", content=content, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["type"].endswith(":malformed")


def test_a_body_of_another_type_is_told_which_to_send(client):
    answer = client.request("POST", "/generate", data={"seed": 7})
    assert answer.status_code == 415
    assert "must be application/json, not application/x-www-form-urlencoded" in answer.text


def test_a_type_that_is_not_offered_is_told_which_are(client):
    answer = client.generate({}, accept="text/html")
    assert answer.status_code == 406
    assert answer.json()["offered"][:2] == ["image/png", "image/webp"]
