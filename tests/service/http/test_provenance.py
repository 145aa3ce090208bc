"""PNG files say what drew them, in every answer that holds some, and stay a pure function."""

import base64
import io
import json
import zipfile

import pytest
from PIL import Image

from service.app import create_app
from service.settings import Settings
from tests.service.client import Client

URL = "/generate?class_label=Dress&seed=7"


def text(file):
    return Image.open(io.BytesIO(file)).text.get("sid-provenance")


def test_every_png_says_what_drew_it(client):
    answer = client.get(URL)
    tag = answer.headers["x-model"]
    said = {"model": tag, "seed": 7, "class_label": 2}
    assert json.loads(text(answer.content)) == said
    many = {"class_label": 2, "seed": 7, "n": 2}
    archive = zipfile.ZipFile(io.BytesIO(client.generate(many, accept="application/zip").content))
    assert archive.read("class2-seed7.png") == answer.content
    assert json.loads(text(archive.read("class2-seed8.png"))) == said | {"seed": 8}
    first, _ = client.generate(many, accept="application/json").json()["images"]
    assert base64.b64decode(first["png"]) == answer.content
    openai = client.request(
        "POST", "/v1/images/generations", json={"prompt": "Dress", "seed": 7}
    ).json()
    assert base64.b64decode(openai["data"][0]["b64_json"]) == answer.content


def test_the_bytes_follow_from_the_request_alone(client, settings):
    answers = [client.get(URL), client.get(f"{URL}&n=1")]
    answers.append(client.generate({"class_label": 2, "seed": 7}))
    with Client(create_app(settings)) as later:
        answers.append(later.get(URL))
    assert len({answer.content for answer in answers}) == 1
    assert answers[-1].headers["etag"] == answers[0].headers["etag"]


def test_off_they_say_nothing_under_another_etag(client, settings):
    with Client(create_app(settings.model_copy(update={"provenance": False}))) as silent:
        bare, full = silent.get(URL), client.get(URL)
        assert text(bare.content) is None
        assert len(full.content) - len(bare.content) < 150
        assert bare.headers["etag"] != full.headers["etag"]
        pixels = [Image.open(io.BytesIO(answer.content)).tobytes() for answer in (bare, full)]
        assert pixels[0] == pixels[1]
        for form in ("image/webp", "image/jpeg", "application/x-npy"):
            answers = [one.get(URL, headers={"accept": form}) for one in (silent, client)]
            assert len({answer.content for answer in answers}) == 1
            assert len({answer.headers["etag"] for answer in answers}) == 1


@pytest.mark.parametrize("value", ["off", "0", "false"])
def test_the_environment_turns_it_off(monkeypatch, value):
    monkeypatch.setenv("SID_PROVENANCE", value)
    assert Settings().provenance is False
