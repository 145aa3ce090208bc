"""The slope of a power law, its interval, and the file of points."""

import json

import numpy as np
import pytest

from distill.analysis.curve import fit_power_law, read_curve
from distill.errors import UserError

IMAGES = np.geomspace(500, 500_000, 21)


def write_points(folder, *points):
    lines = [json.dumps(point) for point in points]
    (folder / "curve.jsonl").write_text("\n".join(lines) + "\n")


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
    write_points(tmp_path, *({"images_seen": n, "distance": d} for n, d in points))
    curve = read_curve(tmp_path)
    assert curve.images.tolist() == [500, 700, 1000]
    assert curve.distances.tolist() == [9.0, 7.5, 6.0]
    assert np.isnan(curve.accuracies).all()
    assert curve.features is None
    assert curve.since(700).distances.tolist() == [7.5, 6.0]


def test_distances_over_other_features_are_no_part_of_the_curve(tmp_path):
    write_points(
        tmp_path,
        {"images_seen": 1, "distance": 900.0, "features": "other"},
        {"images_seen": 2, "distance": 3.0},  # from before the name was written
        {"images_seen": 3, "distance": 2.0, "accuracy": 0.5, "features": "cnn"},
    )
    curve = read_curve(tmp_path)
    assert curve.distances.tolist() == [3.0, 2.0]
    assert curve.features == "cnn"
    assert curve.accuracies[1] == 0.5


def test_too_few_points_and_no_curve_are_said_plainly(tmp_path):
    with pytest.raises(UserError, match="needs three points"):
        fit_power_law(IMAGES[:2], IMAGES[:2])
    with pytest.raises(UserError, match="no place in log-log"):
        fit_power_law(IMAGES[:3], np.array([1.0, 0.0, 2.0]))
    with pytest.raises(UserError, match=r"curve.jsonl is missing"):
        read_curve(tmp_path)
    (tmp_path / "curve.jsonl").write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_curve(tmp_path)
    for damaged in (
        "nonsense",
        "[1, 2]",
        '{"images_seen": 5}',
        '{"images_seen": 5, "distance": []}',
    ):
        (tmp_path / "curve.jsonl").write_text(damaged + "\n")
        with pytest.raises(UserError, match="line 1, is damaged"):
            read_curve(tmp_path)
