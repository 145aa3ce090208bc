"""Every form an answer can have holds the same pixels."""

import base64
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from service.bundle import SEED_MAX

BODY = {"class_label": 2, "seed": 7}


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"), dtype=int)


@pytest.fixture
def expected(client):
    return pixels(client.generate(BODY).content)


@pytest.mark.parametrize(
    ("accept", "sent", "tolerance"),
    [
        ("", "image/png", 0),
        ("*/*", "image/png", 0),
        ("garbage", "image/png", 0),
        ("image/*", "image/png", 0),
        ("image/webp", "image/webp", 0),
        ("image/jpeg", "image/jpeg", 8),
        ("image/png;q=0.5, image/webp;q=0.9", "image/webp", 0),
        ("image/avif, image/webp, image/*, */*;q=0.8", "image/png", 0),
    ],
)
def test_one_image_as_a_file(client, expected, accept, sent, tolerance):
    answer = client.generate(BODY, accept=accept)
    assert answer.headers["content-type"] == sent
    assert answer.headers["x-seed"] == "7"
    assert np.abs(pixels(answer.content) - expected).max() <= tolerance


def test_one_image_as_an_array_of_one(client, expected):
    answer = client.generate(BODY, accept="application/x-npy")
    array = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert array.dtype == np.uint8
    assert array.shape == (1, 8, 8, 1)
    assert np.array_equal(array[0, :, :, 0], expected)


def test_image_i_has_the_seed_plus_i_and_is_what_that_seed_gives_alone(client):
    several = client.generate({**BODY, "n": 20})
    assert several.headers["content-type"] == "application/json"
    assert several.headers["x-seed"] == "7"
    images = several.json()["images"]
    assert [image["seed"] for image in images] == list(range(7, 27))
    for image in images[::6]:
        alone = client.generate({"class_label": 2, "seed": image["seed"]})
        assert base64.b64decode(image["png"]) == alone.content


def test_archive_array_and_json_hold_the_same_images(client):
    body = {"seed": 3, "n": 4}
    images = client.generate(body, accept="application/json").json()["images"]
    files = [base64.b64decode(image["png"]) for image in images]
    archive = client.generate(body, accept="application/zip")
    with zipfile.ZipFile(io.BytesIO(archive.content)) as opened:
        names = opened.namelist()
        assert [opened.read(name) for name in names] == files
    assert names == [f"class{image['class_label']}-seed{image['seed']}.png" for image in images]
    array = np.load(io.BytesIO(client.generate(body, accept="application/x-npy").content))
    for image, file in zip(array, files, strict=True):
        assert np.array_equal(image[:, :, 0], pixels(file))


def test_a_class_left_out_is_the_seed_modulo_the_number_of_classes(client):
    images = client.generate({"seed": 5, "n": 4}).json()["images"]
    assert [image["class_label"] for image in images] == [5 % 3, 6 % 3, 7 % 3, 8 % 3]
    named = client.generate({"class_label": 5 % 3, "seed": 5})
    assert base64.b64decode(images[0]["png"]) == named.content


@pytest.mark.parametrize("accept", ["image/png", "image/webp, image/jpeg;q=0.5"])
def test_several_images_do_not_fit_into_one(client, accept):
    refused = client.generate({"seed": 1, "n": 2}, accept=accept)
    assert refused.status_code == 406
    assert "2 images can be had as application/json or" in refused.json()["detail"]
    assert refused.json()["offered"] == ["application/json", "application/zip", "application/x-npy"]


def test_seeds_end_where_seeds_end(client):
    assert client.generate({"seed": SEED_MAX - 1, "n": 2}).status_code == 200
    refused = client.generate({"seed": SEED_MAX, "n": 2})
    assert refused.status_code == 422
    assert refused.json()["type"].endswith(":seed-out-of-range")


def test_more_images_than_a_request_may_have(client):
    assert len(client.generate({"n": 64}).json()["images"]) == 64
    refused = client.generate({"n": 65})
    assert refused.status_code == 413
    assert "n is at most 64 here, not 65" in refused.json()["detail"]
    for n in (0, -1, 1.5, "2", True):
        assert client.generate({"n": n}).status_code == 422
