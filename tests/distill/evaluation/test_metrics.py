"""The metrics against torch-fidelity 0.4.0's numbers on the same features.

It wants torchvision, and with it another torch, so its numbers lie in a file. They were made by
this, with torch-fidelity's wheel (no dependencies) on the path and, since none of these functions
uses it, empty modules in the place of torchvision's:

    features, logits = test_metrics.clouds(), test_metrics.logits()
    a, b = (torch.from_numpy(cloud) for cloud in features)
    statistics = [metric_fid.fid_features_to_statistics(cloud) for cloud in (a, b)]
    json.dump(
        metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
        | metric_kid.kid_features_to_metric(
            a, b, kid_subsets=20, kid_subset_size=300, verbose=False)
        | metric_prc.prc_features_to_metric(a, b, verbose=False)
        | metric_isc.isc_features_to_metric(torch.from_numpy(logits), shuffle=False),
        open("tests/fixtures/torch_fidelity.json", "w"), indent=2)
"""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from distill.evaluation import precision_recall as pr
from distill.evaluation.frechet import frechet_distance, statistics
from distill.evaluation.inception_score import inception_score
from distill.evaluation.kernel_distance import kernel_distance, squared_mmd
from distill.evaluation.moments import Moments
from distill.evaluation.precision_recall import precision_recall

GOLDEN = json.loads((Path(__file__).parents[2] / "fixtures" / "torch_fidelity.json").read_text())


def clouds():
    """Generated and real features: 900 and 700 of 24, overlapping in part."""
    stream = np.random.RandomState(0)
    mixing = stream.randn(24, 24) / 5
    generated = 1 + 0.8 * stream.randn(900, 24) @ mixing
    real = 1.2 + stream.randn(700, 24) @ mixing
    return generated, real


def logits():
    return 3 * np.random.RandomState(1).randn(1000, 30)


def test_the_frechet_distance_is_the_librarys():
    generated, real = clouds()
    ours = frechet_distance(statistics(generated), statistics(real))
    assert ours == pytest.approx(GOLDEN["frechet_inception_distance"], rel=1e-9)


def test_the_kernel_distance_is_the_librarys():
    mean, deviation = kernel_distance(*clouds(), subsets=20, size=300)
    assert mean == pytest.approx(GOLDEN["kernel_inception_distance_mean"], rel=1e-9)
    assert deviation == pytest.approx(GOLDEN["kernel_inception_distance_std"], rel=1e-9)


def test_precision_and_recall_are_the_librarys(monkeypatch):
    monkeypatch.setattr(pr, "CHUNK", 128)  # several chunks, the last a short one
    precision, recall = precision_recall(*clouds())
    assert 0.05 < recall < precision < 1, "a golden value that says nothing"
    assert precision == pytest.approx(GOLDEN["precision"], abs=1e-6)  # the library's is float32
    assert recall == pytest.approx(GOLDEN["recall"], abs=1e-6)


def test_the_inception_score_is_the_librarys():
    mean, deviation = inception_score(softmax(logits(), axis=1))
    assert mean == pytest.approx(GOLDEN["inception_score_mean"], rel=1e-9)
    assert deviation == pytest.approx(GOLDEN["inception_score_std"], rel=1e-9)


def test_a_certain_and_even_classifier_scores_its_number_of_classes():
    """Probabilities of exactly 0 count as 0 log 0 = 0."""
    mean, deviation = inception_score(np.eye(5)[np.arange(200) % 5])
    assert (mean, deviation) == (pytest.approx(5), pytest.approx(0))
    assert inception_score(np.full((40, 5), 0.2))[0] == pytest.approx(1)


def test_the_kernel_distance_of_halves_of_one_cloud_is_zero_on_average():
    stream = np.random.RandomState(2)
    halves = [stream.randn(2, 200, 8) for _ in range(200)]
    distances = [squared_mmd(a, b) for a, b in halves]
    assert min(distances) < 0 < max(distances), "unbiased: of either sign"
    assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(len(distances))


def test_a_collapsed_generator_is_precise_and_recalls_nothing():
    real = np.random.RandomState(3).randn(500, 4)
    collapsed = np.tile(real[:1], (500, 1)) + 1e-3 * np.random.RandomState(4).randn(500, 4)
    precision, recall = precision_recall(collapsed, real)
    assert precision > 0.99
    assert recall < 0.01


@pytest.mark.parametrize("offset", [0, 1e6])
def test_parts_merge_into_the_whole(offset):
    """Also where features are a million and vary by one: sums of squares would lose them."""
    features = np.random.RandomState(5).randn(1000, 12) + offset
    merged = Moments.none(12)
    for part in np.split(features, [1, 130, 131, 700]):
        merged = merged.merge(Moments.of(part))
    assert merged.count == 1000
    expected = statistics(features)
    np.testing.assert_allclose(merged.statistics().mu, expected.mu, rtol=1e-12)
    # At a million, float64 keeps ten digits of the deviations themselves.
    tolerance = 1e-10 if offset == 0 else 1e-8
    np.testing.assert_allclose(merged.statistics().sigma, expected.sigma, atol=tolerance)


def test_no_features_merge_with_any():
    some = Moments.of(np.random.RandomState(6).randn(5, 3).astype(np.float32))
    none = Moments.none(3)
    for merged in (none.merge(some), some.merge(none)):
        assert merged.count == 5
        np.testing.assert_array_equal(merged.scatter, some.scatter)
    assert none.merge(none).count == 0
