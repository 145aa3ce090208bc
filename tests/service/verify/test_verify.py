"""`sid verify`: whatever was drawn verifies, and what was altered does not."""

import io
import json
import sys

import httpx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from service import cli
from service.app import create_app
from service.serving.encoding import encode_png
from service.settings import Settings
from service.verify.command import verify
from service.verify.comparison import Verdict, compare
from service.verify.png_file import parse_png
from tests.bundles import MIX, STYLE, write_bundle
from tests.service.client import Client
from tests.service.test_process import serving
from tests.service.verify.png_chunks import chunk

seeds = st.integers(0, 2**64 - 1)
BODIES = st.fixed_dictionaries(
    {"seed": seeds},
    optional={"class_label": st.integers(0, 2)},
) | st.fixed_dictionaries(
    {
        "seed": seeds,
        "toward": seeds,
        "mix": st.floats(0, 1),
        "inputs": st.fixed_dictionaries(
            {},
            optional={
                "style": st.integers(0, 4),
                "mix": st.lists(st.floats(-2, 2), min_size=2, max_size=2),
            },
        ),
    }
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified") / "models"
    write_bundle(folder, "styled", extra=[STYLE, MIX])
    write_bundle(folder, "plain", classes=[], channels=3)
    return folder


@pytest.fixture(scope="module")
def drawing(models):
    with Client(create_app(Settings(models=models))) as client:
        yield client


def draw(client, **body):
    answer = client.generate({"model": "styled"} | body)
    assert answer.status_code == 200, answer.text
    return answer.content


def with_pixels(file, change):
    """The file again with other pixels, and what it says of itself."""
    read = parse_png("x", file)
    image = read.rgba()[:, :, :1].copy()
    change(image)
    return encode_png(image, read.provenance[0][1])


@given(BODIES)
@example({"seed": 5, "toward": 7, "mix": 1.0})
@settings(max_examples=15, deadline=None)
def test_any_image_that_is_drawn_verifies_and_one_that_is_altered_does_not(
    models, drawing, tmp_path_factory, body
):
    path = tmp_path_factory.mktemp("drawn") / "x.png"
    place = Settings(models=models)
    file = draw(drawing, **body)
    path.write_bytes(file)
    verdict, line = verify(place, None, path)
    assert verdict == Verdict.GENUINE, line
    at_the_end = body.get("mix") == 1  # there a walk's image is that of its second seed
    assert f"seed {body['toward' if at_the_end else 'seed']}" in line

    def invert(image):
        image[body["seed"] % 8, 3] ^= 0x80

    path.write_bytes(with_pixels(file, invert))
    verdict, line = verify(place, None, path)
    assert verdict == Verdict.ALTERED, line


def test_an_image_without_classes_verifies(models, drawing, tmp_path):
    (tmp_path / "x.png").write_bytes(draw(drawing, model="plain", seed=2**64 - 1))
    assert verify(Settings(models=models), None, tmp_path / "x.png").verdict == Verdict.GENUINE


def test_the_text_is_a_request_that_draws_the_same_bytes(drawing):
    walk = {"seed": 3, "toward": 2**64 - 1, "mix": 1 / 3, "inputs": {"style": 3}}
    for body in ({"seed": 7, "class_label": "Dress"}, walk):
        file = draw(drawing, **body)
        text = Image.open(io.BytesIO(file)).text["sid-provenance"]
        assert draw(drawing, **json.loads(text)) == file
    assert json.loads(text)["inputs"] == {"style": 3, "mix": [0.5, 0.5]}


def sid_verify(monkeypatch, capsys, path, *options):
    """Exit status, and the one line on standard output or error."""
    monkeypatch.setattr(sys, "argv", ["sid", "verify", str(path), *map(str, options)])
    capsys.readouterr()  # the log of the server that drew
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (out + err).count("\n") == 1, out + err
    return end.value.code, out + err


def edited(old, new):
    def edit(file):
        read = parse_png("x", file)
        text = read.provenance[0][1]
        assert old in text
        return encode_png(read.rgba()[:, :, :1].copy(), text.replace(old, new))

    return edit


def one_level(file):
    def change(image):
        image[0, 0] += 1 if image[0, 0] < 255 else -1

    return with_pixels(file, change)


def resized(file):
    text = parse_png("x", file).provenance[0][1]
    return encode_png(np.zeros((9, 8, 1), np.uint8), text)


def transparent(file):
    image = Image.open(io.BytesIO(file)).convert("LA")
    image.putalpha(100)
    info, out = PngInfo(), io.BytesIO()
    info.add_text("sid-provenance", Image.open(io.BytesIO(file)).text["sid-provenance"])
    image.save(out, "PNG", pnginfo=info)
    return out.getvalue()


def resaved(**options):
    def save(file):
        out = io.BytesIO()
        Image.open(io.BytesIO(file)).save(out, **{"format": "PNG"} | options)
        return out.getvalue()

    return save


def inserted(kind, content):
    def insert(file):
        return file[:33] + chunk(kind, content) + file[33:]

    return insert


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        (lambda file: file, 0, "genuine: model styled:1:"),
        (lambda file: file + b"a trailer", 0, "Dress (class 2), seed 7, style 1, mix [0.5, 0.5];"),
        (one_level, 3, "nearly: "),
        (resized, 1, "altered: "),
        (transparent, 1, "part of it is transparent"),
        (inserted(b"acTL", b""), 1, "it holds acTL, by which it may be shown otherwise"),
        (edited(b'"seed":7', b'"seed":8'), 1, "altered: "),
        (resaved(), 4, "no provenance: the file does not say what drew it"),
        (edited(b"styled:1", b"styled:2"), 6, "not here: it says model styled:2:"),
        (edited(b"styled:", b"other:"), 6, "has no model other, only plain, styled"),
        (edited(b":float32", b":int4"), 5, "not ours: "),
        (edited(b'"seed":7', b'"seed":-7'), 5, "seed: Input should be greater than or equal to 0"),
        (edited(b'"seed":7', b'"toward":7'), 5, "seed: Field required"),
        (edited(b'"seed"', b'"\\u001b\\n":1,"seed"'), 5, "??: Extra inputs are not permitted"),
        (edited(b'label":2', b'label":3'), 5, "class_label 3 is out of range"),
        (edited(b'"style":1', b'"style":9'), 5, "style takes a whole number from 0 to 4"),
        (edited(b"{", b"{" * 9999), 5, "not ours: "),
        (edited(b"{", b"\xff{"), 5, "not ours: "),
        (inserted(b"tEXt", b"sid-provenance\0{}"), 5, "it stands there twice"),
        (lambda file: file[:100], 2, "error: "),
        (resaved(format="JPEG"), 2, "not a PNG file"),
    ],
)
def test_each_end_has_a_status_and_one_line(
    models, drawing, tmp_path, monkeypatch, capsys, change, status, says
):
    path = tmp_path / "x.png"
    path.write_bytes(change(draw(drawing, seed=7, class_label=2)))
    done = sid_verify(monkeypatch, capsys, path, "--models", models)
    assert (done[0], says in done[1]) == (status, True), done


def test_a_text_that_is_not_of_our_kind_is_not_ours(models, drawing, tmp_path):
    file = draw(drawing, seed=7)
    bare = resaved()(file)
    content = b"sid-provenance\0\0\0\0\0" + parse_png("x", file).provenance[0][1]
    (tmp_path / "x.png").write_bytes(inserted(b"iTXt", content)(bare))
    verdict, line = verify(Settings(models=models), None, tmp_path / "x.png")
    assert (verdict, "it is a chunk iTXt, not tEXt" in line) == (Verdict.NOT_OURS, True)


@pytest.mark.parametrize(
    ("graphs", "levels", "verdict"),
    [
        (("float32-cpu", "float32-cpu"), 3, Verdict.ALTERED),
        (("float32-cpu", "float16-cuda"), 3, Verdict.NEARLY),
        (("float16", "float32"), 6, Verdict.ALTERED),
        (("bfloat16", "float32"), 60, Verdict.NEARLY),
    ],
)
def test_how_near_is_near_enough_follows_from_both_graphs(graphs, levels, verdict):
    drawn = np.full((64, 64, 4), 255, np.uint8)
    shown = drawn.copy()
    shown[5, 5, :3] -= np.uint8(levels)
    assert compare(shown, drawn, graphs)[0] == verdict
    assert f"by up to {levels} levels" in compare(shown, drawn, graphs)[1]
    shown[:, :, :3] -= np.uint8(10)
    assert compare(shown, drawn, graphs)[0] == Verdict.ALTERED


def test_a_server_can_draw_again(models, tmp_path, monkeypatch, capsys):
    path = tmp_path / "x.png"
    with serving(models) as (_, url):
        body = {"model": "styled", "seed": 7, "toward": 9, "mix": 0.3, "inputs": {"style": 2}}
        file = httpx.post(f"{url}/generate", json=body, trust_env=False).content
        for change, status, says in (
            (lambda file: file, 0, f"every pixel is the same ({url})"),
            (one_level, 3, "nearly: "),
            (edited(b'"seed":7', b'"seed":8'), 1, "altered: "),
            (edited(b"styled:1", b"styled:2"), 6, f"{url} has plain:1:"),
            (edited(b'"style":2', b'"style":9'), 5, "style takes"),
        ):
            path.write_bytes(change(file))
            done = sid_verify(monkeypatch, capsys, path, "--url", url)
            assert (done[0], says in done[1]) == (status, True), done
