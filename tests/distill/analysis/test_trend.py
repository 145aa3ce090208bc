"""What more training promises, and when a run is ended by it: recorded and synthetic curves."""

from pathlib import Path

import numpy as np
import pytest

from distill.analysis.curve import Curve, read_curve
from distill.analysis.findings import describe_variety
from distill.analysis.trend import DEFAULT_GAIN, describe_trend, explain_end, recent_trend
from distill.errors import UserError

FASHION = Path(__file__).parents[3] / "docs" / "fashion-sid"
IMAGES = np.round(500 * np.sqrt(2) ** np.arange(24))
DOUBLINGS = np.log2(IMAGES / 500)


def curve(distances, images=IMAGES, **more):
    columns = {name: np.full(len(images), np.nan) for name in
               ("accuracies", "precisions", "recalls", "rate_shares")}  # fmt: skip
    return Curve(images=images, distances=distances, features=None, **columns | more)


def flattening(knee, slope=-0.3):
    """A power law up to the point of number `knee`, then nothing more."""
    return 40 * 2 ** (slope * np.minimum(DOUBLINGS, DOUBLINGS[knee]))


def noise(scale, seed):
    return np.exp(np.random.default_rng(seed).normal(0, scale, len(IMAGES)))


def ended_at(measured, not_before=0):
    """The number of the point at which the rule ends a run, and why; None and None: nowhere."""
    for number, images in enumerate(measured.images):
        if why := explain_end(measured.until(images), DEFAULT_GAIN, not_before):
            return number, why
    return None, None


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_falls_as_a_power_is_never_ended(seed):
    assert ended_at(curve(40 * 2 ** (-0.3 * DOUBLINGS) * noise(0.1, seed))) == (None, None)
    assert ended_at(curve(40 * 2 ** (-0.2 * DOUBLINGS) * noise(0.05, seed))) == (None, None)


def test_the_recorded_run_is_never_ended():
    recorded = read_curve(FASHION)
    assert ended_at(recorded) == (None, None)
    trend = recent_trend(recorded.until(90_624))  # then its first cooldown began
    assert (trend.points, trend.since, trend.until) == (8, 8_064, 90_624)
    assert [trend.gain, trend.low, trend.high] == pytest.approx([0.170, 0.107, 0.229], abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [0.02, 0.1])
def test_a_flat_run_is_ended_once_there_are_enough_points(scale, seed):
    number, why = ended_at(curve(5 * noise(scale, seed)))
    assert 7 <= number <= 13
    assert why.startswith(("the distance has flattened", "the distance rises")), why


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_falls_and_then_is_flat_is_ended_some_doublings_later(seed):
    number, _ = ended_at(curve(flattening(12) * noise(0.05, seed)))
    assert 12 + 3 < number <= 12 + 8


def test_a_run_that_rises_is_ended_with_a_word():
    full = np.ones(len(IMAGES))
    _, why = ended_at(curve(5 * 2 ** (0.2 * DOUBLINGS), rate_shares=full))
    assert why == (
        "the distance rises: a doubling of the images promises 14.9 % more distance (95 %: between "
        "14.9 % more and 14.9 % more), by the trend of 8 points at the full learning rate, 500 to "
        "5,657 images; it goes on for 10 % or more only"
    )


def test_no_run_is_ended_before_the_average_has_forgotten_its_beginning():
    number, _ = ended_at(curve(np.full(len(IMAGES), 5.0)), not_before=80_000)
    assert IMAGES[number - 1] < 80_000 <= IMAGES[number]


def test_a_cooldown_is_no_trend():
    """The learning rate falls, and with it the distance: nothing that would go on."""
    full = np.arange(len(IMAGES)) < 20
    distances = flattening(10) * np.where(full, 1, 0.7)
    cooled = curve(distances, rate_shares=np.where(full, 1.0, 0.5))
    trend = recent_trend(cooled)
    assert trend.until == IMAGES[19]
    assert trend.high < 0.05
    assert recent_trend(curve(distances)).high > DEFAULT_GAIN, "as if it still fell"


def test_points_that_are_too_few_promise_nothing():
    flat = curve(np.full(len(IMAGES), 5.0))
    assert explain_end(flat.until(IMAGES[6]), DEFAULT_GAIN, 0) is None
    with pytest.raises(UserError, match=r"a trend needs 8 points at the full learning rate, .* 7"):
        recent_trend(flat.until(IMAGES[6]))
    sparse = curve(np.full(8, 5.0), 500 * 4.0 ** np.arange(8))
    with pytest.raises(UserError, match="the run has 2"):
        recent_trend(sparse)
    with pytest.raises(UserError, match="the run has 0"):
        recent_trend(curve(np.full(len(IMAGES), 5.0), rate_shares=np.zeros(len(IMAGES))))
    assert explain_end(curve(np.zeros(len(IMAGES))), DEFAULT_GAIN, 0) is None, "no logarithm"


def test_the_promise_is_said_with_its_interval():
    said = describe_trend(recent_trend(curve(40 * 2 ** (-0.3 * DOUBLINGS) * noise(0.05, 0))))
    assert said.startswith("A doubling of the images promises ")
    assert "% less distance (95 %: between " in said
    assert said.endswith(
        "by the trend of 8 points, 128,000 to 1,448,155 images; the run does not say which of them "
        "are of a cooldown."
    )


@pytest.mark.parametrize(
    ("recall_slope", "distance_slope", "said"),
    [
        (-0.03, -0.3, "the generator improves what it draws and loses variety"),
        (-0.03, 0.0, "more of the same training does harm"),
        (0.0, -0.3, None),
        (0.02, -0.3, None),
    ],
)
def test_a_recall_that_falls_is_said(recall_slope, distance_slope, said):
    spread = np.log(noise(0.01, 1))  # about the error of a share of 2,000
    measured = curve(
        40 * 2 ** (distance_slope * DOUBLINGS) * noise(0.02, 2),
        recalls=0.7 + recall_slope * (DOUBLINGS - 8) + spread,
        precisions=np.full(len(IMAGES), 0.8),
    )
    first, *warnings = describe_variety(measured)
    assert "precision is 0.800 and recall 0." in first
    assert [said in warning for warning in warnings] == [True] * (said is not None)


def test_nothing_is_said_of_recalls_that_were_not_measured():
    assert describe_variety(curve(np.full(len(IMAGES), 5.0))) == []
    two = np.full(len(IMAGES), np.nan)
    two[-2:] = 0.9, 0.1
    assert len(describe_variety(curve(np.full(len(IMAGES), 5.0), recalls=two))) == 1
