"""A walk between two seeds: the noise on the way, and the images over HTTP."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial import geometric_slerp

from service.bundle import latents
from service.serving.interpolation import slerp

SHAPE = (3, 16, 16)
seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0, 1)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


@given(seeds, seeds, shares)
def test_noise_on_the_way_is_as_long_as_noise_is(first, second, mix):
    start, end = latents([first, second], SHAPE)
    between = slerp(start, end, mix)
    lengths = np.linalg.norm(start), np.linalg.norm(end)
    # Two lengths that differ by a few percent, and an arc that is not quite a circle's.
    assert min(lengths) * 0.98 <= np.linalg.norm(between) <= max(lengths) * 1.02
    assert between.dtype == np.float32
    assert between.shape == SHAPE


@given(seeds, seeds, shares)
def test_there_and_back_is_the_same_way(first, second, mix):
    start, end = latents([first, second], SHAPE)
    np.testing.assert_allclose(slerp(start, end, mix), slerp(end, start, 1 - mix), atol=2e-6)


def test_on_the_sphere_it_is_the_great_circle_that_scipy_draws():
    a, b = latents([3, 8], SHAPE).reshape(2, -1).astype(np.float64)
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    for mix in (0.1, 0.25, 0.5, 0.9):
        ours = slerp(a.astype(np.float32), b.astype(np.float32), mix)
        np.testing.assert_allclose(ours, geometric_slerp(a, b, mix), atol=1e-6)


@given(seeds, shares)
def test_from_a_seed_to_itself_is_no_way(seed, mix):
    (noise,) = latents([seed], SHAPE)
    assert np.array_equal(slerp(noise, noise.copy(), mix), noise)


def test_its_ends_are_the_two_seeds_images(client):
    draw, exact = {"class_label": 1, "seed": 3}, "image/webp"  # a PNG says that it is of a walk
    at_the_start = client.generate({**draw, "toward": 8, "mix": 0}, accept=exact)
    assert at_the_start.content == client.generate(draw, accept=exact).content
    at_the_end = client.generate({**draw, "toward": 8, "mix": 1}, accept=exact)
    assert at_the_end.content == client.generate({**draw, "seed": 8}, accept=exact).content
    assert at_the_end.headers["x-seed"] == "3"
    assert (at_the_end.headers["x-toward"], at_the_end.headers["x-mix"]) == ("8", "1.0")


def test_a_small_step_changes_the_image_less_than_a_large_one(client):
    def at(mix):
        walk = {"class_label": 1, "seed": 3, "toward": 8, "mix": mix}
        return pixels(client.generate(walk).content)

    start = at(0)
    assert 0 < np.abs(at(0.05) - start).mean() < np.abs(at(1) - start).mean() / 2


def test_halfway_and_the_first_seed_s_class_are_the_defaults(client):
    short = client.generate({"seed": 4, "toward": 8})
    full = client.generate({"seed": 4, "class_label": 4 % 3, "toward": 8, "mix": 0.5})
    assert short.content == full.content
    assert short.headers["x-class-label"] == "1"


def test_several_walks_go_side_by_side(client):
    many = {"seed": 3, "n": 3, "toward": 8, "mix": 0.25}
    images = client.generate(many).json()["images"]
    assert [(i["seed"], i["toward"], i["mix"]) for i in images] == [
        (3, 8, 0.25),
        (4, 9, 0.25),
        (5, 10, 0.25),
    ]
    alone = client.generate({"seed": 4, "toward": 9, "mix": 0.25}, accept="application/json")
    assert alone.json()["images"][0] == images[1]
    assert (
        client.generate({"seed": 3}, accept="application/json").json()["images"][0]["mix"] is None
    )


def test_get_is_the_same_and_each_step_has_a_tag_of_its_own(client):
    url = "/generate?class_label=1&seed=3&toward=8&mix="
    posted = client.generate({"class_label": 1, "seed": 3, "toward": 8, "mix": 0.25})
    steps = {mix: client.get(url + mix) for mix in ("0", "0.25", "0.5", "1")}
    assert steps["0.25"].content == posted.content
    tags = {step.headers["etag"] for step in steps.values()}
    assert len(tags | {client.get("/generate?class_label=1&seed=3").headers["etag"]}) == 5
    again = client.get(url + "0.25", headers={"if-none-match": steps["0.25"].headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"mix": 0.5}, "say toward"),
        ({"toward": 8, "mix": 1.5}, "less than or equal to 1"),
        ({"toward": 8, "mix": -0.1}, "greater than or equal to 0"),
        ({"toward": 8, "mix": "0.5"}, "valid number"),
        ({"toward": 8, "mix": True}, "valid number"),
        ({"toward": 2**64, "mix": 0.5}, str(2**64 - 1)),
        ({"toward": 2**64 - 1, "n": 2}, str(2**64 - 1)),
        ({"toward": "Dress"}, "valid integer"),
    ],
)
def test_what_is_no_walk_is_refused_in_words(client, body, says):
    answer = client.generate({"seed": 1, **body})
    assert answer.status_code == 422
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("mix", [".5", "5e-1", "nan", "inf", "1.1", "-0", "0.5 ", "½", ""])
def test_a_query_takes_plain_decimals_only_each_other_spelling_is_another_url(client, mix):
    answer = client.get("/generate", params={"seed": 3, "toward": 8, "mix": mix})
    assert answer.status_code == 422, answer.text
