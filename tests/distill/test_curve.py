"""The slope of a power law, and its interval."""

import json

import numpy as np
import pytest

from distill.errors import UserError
from distill.evaluation.curve import fit_power_law, plot_curve, read_curve

IMAGES = np.geomspace(500, 500_000, 21)


def test_an_exact_power_law_is_recovered():
    law = fit_power_law(IMAGES, 300 * IMAGES**-0.4)
    assert law.slope == pytest.approx(-0.4)
    assert law.factor == pytest.approx(300)
    assert law.high - law.low < 1e-6


def test_the_interval_holds_the_true_slope_19_times_in_20():
    rng = np.random.default_rng(0)
    noisy = [300 * IMAGES**-0.4 * np.exp(rng.normal(0, 0.2, 21)) for _ in range(500)]
    laws = [fit_power_law(IMAGES, distances) for distances in noisy]
    held = np.mean([law.low <= -0.4 <= law.high for law in laws])
    assert held == pytest.approx(0.95, abs=0.03)


def test_a_resumed_runs_repeated_points_count_once(tmp_path):
    points = [(500, 9.0), (700, 8.0), (700, 7.5), (1000, 6.0)]
    lines = [json.dumps({"images_seen": n, "distance": d}) for n, d in points]
    (tmp_path / "curve.jsonl").write_text("\n".join(lines) + "\n")
    images, distances = read_curve(tmp_path)
    assert images.tolist() == [500, 700, 1000]
    assert distances.tolist() == [9.0, 7.5, 6.0]
    plot_curve(tmp_path / "c.png", images, distances, fit_power_law(images, distances), 500, 5.0)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_too_few_points_and_no_curve_are_said_plainly(tmp_path):
    with pytest.raises(UserError, match="needs three points"):
        fit_power_law(IMAGES[:2], IMAGES[:2])
    with pytest.raises(UserError, match=r"curve.jsonl is missing"):
        read_curve(tmp_path)
