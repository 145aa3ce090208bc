"""What `sid bench` makes of what it measured, and what it sends: no server needed."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bench import BenchError, Target, generate_body
from service.bench.load import schedule
from service.bench.report import summarise
from service.bench.samples import Samples
from service.bench.stats import curve, latency, percentile, stage_means

# Hypothesis' own deadline would measure the machine, which the tests share.
pure = settings(deadline=None, max_examples=50)
SECONDS = st.lists(st.floats(1e-6, 100), min_size=1, max_size=50).map(sorted)


# Statistics


@pure
@given(SECONDS, st.sampled_from([0, 10, 25, 50, 75, 90, 100]))
def test_percentiles_are_numpys_nearest_rank(ordered, percent):
    assert percentile(ordered, percent) == np.percentile(ordered, percent, method="inverted_cdf")


@pure
@given(st.integers(1, 5000))
def test_a_percentile_that_is_no_binary_fraction_has_its_exact_rank(size):
    assert percentile(range(1, size + 1), 99.9) == -(-size * 999 // 1000)


@pure
@given(SECONDS)
def test_a_summary_is_numpys(ordered):
    summary = latency(ordered)
    assert summary.count == len(ordered)
    assert summary.mean == pytest.approx(np.mean(ordered))
    assert summary.p50 <= summary.p90 <= summary.p99 <= summary.p99_9 <= summary.max == ordered[-1]


@pure
@given(SECONDS)
def test_the_curve_ascends_through_measured_values(ordered):
    percents, seconds = zip(*curve(ordered), strict=True)
    assert list(percents) == sorted(percents)
    assert list(seconds) == sorted(seconds)
    assert set(seconds) <= set(ordered)


def test_nothing_measured_is_nothing_summarised():
    assert latency([]) is None
    assert curve([]) == []
    assert stage_means([]) == {}


def test_stages_are_averaged_over_the_answers_that_name_them():
    means = stage_means(
        [b"queue;dur=1.0, engine;dur=3", b'queue;desc="a b";dur=3.0, cache;desc=hit']
    )
    assert means == pytest.approx({"queue": 0.002, "engine": 0.003})


# Schedules and requests


def test_even_arrivals_do_not_drift():
    times = schedule(300, 10, "even")
    assert len(times) == 3000
    assert np.allclose(times, np.arange(3000) / 300, rtol=0, atol=1e-12)


def test_poisson_arrivals_are_independent_and_the_same_every_time():
    times = schedule(200, 50, "poisson")
    gaps = np.diff(times)
    assert times == schedule(200, 50, "poisson")
    assert times[-1] < 50
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # the mark of the exponential


def test_each_request_has_the_next_seed_and_the_length_it_says():
    target = Target("http://[::1]:81/gateway/", headers=["X-Deadline-Ms: 200"], seed=9)
    nine, ten = target.request(), target.request()
    assert nine == (
        b"POST /gateway/generate HTTP/1.1\r\nHost: [::1]:81\r\nContent-Type: application/json\r\n"
        b'X-Deadline-Ms: 200\r\nContent-Length: 11\r\n\r\n{"seed": 9}'
    )
    assert ten == nine.replace(b"9}", b"10}").replace(b"11\r\n", b"12\r\n")


def test_other_servers_are_asked_in_their_own_words():
    target = Target(
        path="/predict?key={seed}",
        body='{"inputs": [{seed}, {seed}], "dreß": 1}',
        headers=["content-type: application/x"],
        seed=123,
    )
    head, body = target.request().split(b"\r\n\r\n")
    assert json.loads(body) == {"inputs": [123, 123], "dreß": 1}
    assert head.startswith(b"POST /predict?key=123 HTTP/1.1\r\n")
    assert head.endswith(b"Content-Length: %d" % len(body))
    assert head.lower().count(b"content-type") == 1


def test_the_body_says_what_was_chosen_and_nothing_else():
    assert json.loads(generate_body().replace("{seed}", "1")) == {"seed": 1}
    body = generate_body("fashion", "T-shirt/top", 4).replace("{seed}", "1")
    assert json.loads(body) == {"model": "fashion", "class_label": "T-shirt/top", "n": 4, "seed": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "https://127.0.0.1"},
        {"url": "127.0.0.1:8000"},
        {"url": "http://127.0.0.1:port"},
        {"url": "http://127.0.0.1/?a=b"},
        {"url": "http://dreß"},
        {"path": "generate"},
        {"path": "/a b"},
        {"headers": ["no colon"]},
        {"headers": ["X-A: b\r\nX-C: d"]},
        {"body": "{seed"},
    ],
)
def test_what_cannot_be_sent_is_refused(wrong):
    with pytest.raises(BenchError):
        Target(**wrong)


# What is counted


def test_latency_counts_from_when_a_request_was_due_and_only_the_window_counts():
    samples = Samples()
    samples.answered(due=0.5, sent=0.5, done=1.5, status=200, timing=None)  # of the warm-up
    samples.answered(due=1.5, sent=1.75, done=2.0, status=201, timing=b"engine;dur=4")
    samples.answered(due=2.5, sent=2.5, done=3.5, status=200, timing=None)  # after the end
    samples.answered(due=2.0, sent=2.0, done=2.125, status=429, timing=b"engine;dur=9")
    samples.failed(0.5, "dropped")
    samples.failed(2.0, "dropped")
    samples.late.append(0.75)
    samples.not_sent.extend([0.5, 2.5])
    report = summarise(
        samples, (1.0, 3.0), mode="open", connections=2, warmup=1, images=4, cpu_seconds=0.07
    )
    assert report.requests_per_second == 1.0  # the two that arrived within two seconds
    assert report.images_per_second == 4.0
    assert report.statuses == {200: 1, 201: 1, 429: 1}
    assert report.errors == {"dropped": 1, "timeout": 1}
    assert report.not_sent == 1
    assert report.requests == 6
    assert (report.latency.p50, report.latency.max) == (0.5, 1.0)
    assert report.refused.max == 0.125
    assert report.lag.max == 0.25
    assert report.stages == {"engine": 0.004}
    assert report.cpu_seconds_per_request == pytest.approx(0.01)
