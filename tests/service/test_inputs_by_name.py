"""A model's labels and vectors through the client package and `sid generate`, to a real server."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.client import AnswerError, AsyncClient, Client
from tests.bundles import MIX, STYLE, write_bundle
from tests.service import test_cli
from tests.service.test_process import serving

INPUTS = {"style": 3, "mix": [0.25, -1.0]}
sid, assert_user_error = test_cli.sid, test_cli.assert_user_error


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("by-name") / "models"
    write_bundle(folder, "styled", extra=[STYLE, MIX])
    return folder


@pytest.fixture(scope="module")
def url(models) -> Iterator[str]:
    with serving(models, log=models.parent / "log") as (_, url):
        yield url


def drawn(url: str, seed: int, **inputs) -> bytes:
    """The image that the server draws, asked for without any client of ours."""
    return httpx.post(f"{url}/generate", json={"seed": seed, "inputs": inputs}).content


def test_the_client_passes_them_on_and_says_what_a_picture_had(url):
    with Client(url) as client:
        image = client.generate(seed=4, inputs=INPUTS)
        assert image.content == drawn(url, 4, **INPUTS)
        assert image.inputs == INPUTS
        assert client.generate(seed=4).inputs == {"style": 1, "mix": [0.5, 0.5]}
        batch = client.batch(4, 2, inputs=INPUTS)
        assert [one.inputs for one in batch] == [INPUTS, INPUTS]
        assert batch[1].content == drawn(url, 5, **INPUTS)
        (streamed,) = client.stream([4], inputs=INPUTS)
        assert streamed.content == image.content
        with pytest.raises(AnswerError, match="style takes a whole number from 0 to 4"):
            client.generate(inputs={"style": 9})


def test_so_does_the_one_for_event_loops(url):
    async def scenario():
        async with AsyncClient(url) as client:
            return await client.generate(seed=4, inputs=INPUTS)

    assert asyncio.run(scenario()).content == drawn(url, 4, **INPUTS)


@pytest.fixture(params=["here", "server"])
def place(request, models, url) -> list[str]:
    return ["--models", str(models)] if request.param == "here" else ["--url", url]


OPTIONS = ["--input", "style=3", "--input", "mix=[0.25, -1]"]


def test_one_picture(sid, place, url, tmp_path):
    assert sid("generate", *place, "--seed", 4, *OPTIONS).status == 0
    assert (tmp_path / "picture.png").read_bytes() == drawn(url, 4, **INPUTS)


def test_many_pictures_and_not_others_into_the_same_folder(sid, place, url, tmp_path):
    run = ("generate", *place, "--seeds", "4-6", "-o", "out")
    assert sid(*run, *OPTIONS).status == 0
    files = sorted((tmp_path / "out").rglob("*.png"), key=lambda path: path.name)
    assert [file.read_bytes() for file in files] == [drawn(url, i, **INPUTS) for i in (4, 5, 6)]
    assert "are there already" in sid(*run, *OPTIONS).stdout
    assert_user_error(sid(*run), 'out was begun with inputs {"mix": [0.25, -1], "style": 3} and')


def test_a_run_of_before_there_were_inputs_goes_on(sid, place, tmp_path):
    run = ("generate", *place, "--seeds", "0-2", "-o", "out")
    assert sid(*run).status == 0
    record = tmp_path / "out" / "sid-generate.json"
    fields = json.loads(record.read_text())
    assert fields.pop("inputs") == "defaults"
    record.write_text(json.dumps(fields))
    assert "all 3 images are there already" in sid(*run).stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("style=9", "style takes a whole number from 0 to 4 (default 1), not 9"),
        ("mix=[1]", "mix takes a list of 2 numbers"),
        ("colour=1", "styled has no input 'colour'"),
        ("style", "--input style: inputs are written as style=3 or 'mix=[0.2, 0.8]'"),
        ("style=three", "--input style=three: inputs are written as"),
    ],
)
@pytest.mark.parametrize("many", [[], ["--seeds", "0-2", "-o", "out"]])
def test_what_the_model_does_not_take_is_one_line(sid, models, many, text, says):
    assert_user_error(sid("generate", "--models", models, *many, "--input", text), says)


@pytest.mark.parametrize(
    "value",
    ["NaN", "1e999", "[Infinity, 1]", r'"\ud800"', "[" * 3000],
    ids=lambda value: value[:12],
)
def test_what_no_request_can_hold_is_one_line_here_and_for_a_server(sid, place, value):
    text = f"style={value}"
    assert_user_error(sid("generate", *place, "--input", text), "inputs are written as style=3 or")


def test_an_input_that_is_named_twice_is_refused(sid, models):
    twice = ("--input", "style=3", "--input", "style=4")
    assert_user_error(sid("generate", "--models", models, *twice), "style is named twice")
