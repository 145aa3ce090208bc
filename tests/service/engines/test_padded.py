"""Batches of a few sizes in fixed buffers, and recordings that are alone, by real sessions."""

import math
import threading

import numpy as np
import pytest

from service.bundle import BASELINE, load_bundle
from service.engines import EngineError
from service.engines.onnx import open_session
from service.engines.padded import PaddedSession, _Gate, pad, padded_sizes, worthwhile
from tests.bundles import graph_inputs
from tests.service.engines.padded_engine import drawn_for


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (6, [1, 2, 4, 6]),
        (64, [1, 2, 4, 8, 16, 32, 64]),
        (100, [1, 2, 4, 8, 16, 32, 64, 100]),
    ],
)
def test_sizes_are_powers_of_two_up_to_the_limit_and_the_limit(limit, sizes):
    assert padded_sizes(limit) == sizes


def test_a_batch_is_filled_up_with_its_last_row():
    rows = np.arange(6).reshape(3, 2)
    assert pad(rows, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert np.array_equal(pad(rows, 3), rows)


class Watched:
    """A real session, and under which number each of its runs was to be recorded."""

    def __init__(self, path):
        self.session, self.graph_ids = open_session(path, 1), []

    def io_binding(self):
        return self.session.io_binding()

    def run_with_iobinding(self, binding, options):
        self.graph_ids.append(options.get_run_config_entry("gpu_graph_id"))
        self.session.run_with_iobinding(binding, options)


@pytest.fixture
def padded(models):
    """Makes a PaddedSession over a watched session of the bundle `tiny`; of batches up to 8."""
    made = []

    def make(*, recorded):
        import onnxruntime

        bundle = load_bundle(models / "tiny")
        watched = Watched(bundle.graph(BASELINE))
        signature = bundle.manifest.signature
        session = PaddedSession(
            watched, signature, limit=8, device=("cpu", 0), recorded=recorded, name="tiny"
        )
        made.append(session)

        def run(count):
            inputs = graph_inputs(*drawn_for(bundle, count))
            return session.run(inputs, onnxruntime.RunOptions())

        return session, watched, run

    yield make
    for session in made:
        session.end()


def test_each_size_is_recorded_largest_first_and_serves_what_fits_into_it(padded, monkeypatch):
    monkeypatch.setattr("service.engines.padded._CLEARLY", math.inf)
    session, watched, run = padded(recorded=True)
    session.warm_up()
    assert list(dict.fromkeys(watched.graph_ids)) == ["8", "4", "2", "1"]
    watched.graph_ids.clear()
    assert [len(run(count)) for count in range(1, 9)] == list(range(1, 9))
    assert watched.graph_ids == ["1", "2", "4", "4", "8", "8", "8", "8"]


def test_what_is_not_recorded_says_so_to_the_session_and_has_one_size(padded):
    """ONNX Runtime plans every convolution anew at each change of the size."""
    session, watched, run = padded(recorded=False)
    session.warm_up()
    assert [len(run(count)) for count in (1, 3, 8)] == [1, 3, 8]
    assert set(watched.graph_ids) == {"-1"}
    assert list(session._buffers) == [8]


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [
        ({1: 1, 2: 2, 4: 3}, [1, 2, 4]),
        ({1: 22.6, 2: 15, 4: 4, 8: 3.4, 64: 12}, [4, 8, 64]),  # 4: no clear difference
        ({1: 5, 2: 1, 4: 3}, [2, 4]),
        ({8: 1}, [8]),
    ],
)
def test_a_size_that_takes_longer_than_a_larger_one_is_given_up(seconds, kept):
    assert worthwhile(seconds) == kept


def test_images_of_a_size_that_was_given_up_are_drawn_in_a_larger_batch(padded, monkeypatch):
    session, watched, run = padded(recorded=True)
    monkeypatch.setattr(session, "_seconds", lambda size, _: 9 if size < 4 else size)
    session.warm_up()
    watched.graph_ids.clear()
    assert len(run(1)) == 1
    assert watched.graph_ids == ["4"]


def test_buffers_stay_where_they_are_and_answers_are_of_their_own(padded):
    """A recorded graph computes at the addresses that it saw; a later batch overwrites them."""
    session, _, run = padded(recorded=True)

    def addresses():
        return [
            value.data_ptr()
            for buffers in session._buffers.values()
            for value in (*buffers._inputs.values(), buffers._images)
        ]

    before = addresses()
    three = run(3)
    kept = three.copy()
    run(4)
    run(8)
    assert addresses() == before
    assert len(set(before)) == len(before)
    assert np.array_equal(three, kept)


def test_a_batch_that_is_too_large_or_of_another_type_is_refused_before_it_is_copied(padded):
    import onnxruntime

    session, watched, run = padded(recorded=False)
    with pytest.raises(ValueError, match="9 images are more than the largest batch, 8"):
        run(9)
    labels = np.zeros(2, np.int64)
    for noise in (np.zeros((2, 1, 8, 8)), np.zeros((2, 64), np.float32)):
        with pytest.raises(ValueError, match=r"latents is .*, not float32 \(2, 1, 8, 8\)"):
            session.run(graph_inputs(noise, labels), onnxruntime.RunOptions())
    assert not watched.graph_ids


def test_a_closed_session_refuses_and_nobody_waits_for_it(padded):
    session, _, run = padded(recorded=False)
    session.end()
    with pytest.raises(EngineError, match="closed"):
        run(1)


def test_a_recording_is_alone_and_batches_are_not():
    """CUDA lets no other thread copy meanwhile: of two models on one card both would fail."""
    gate, order, inside, go_on = _Gate(), [], threading.Barrier(3), threading.Event()

    def batch():
        with gate.batch():
            inside.wait(timeout=30)  # both at a time
            go_on.wait(timeout=30)
            order.append("batch")

    def record():
        with gate.recording():
            order.append("recording")

    batches = [threading.Thread(target=batch) for _ in range(2)]
    for thread in batches:
        thread.start()
    inside.wait(timeout=30)
    recorder = threading.Thread(target=record)
    recorder.start()
    go_on.set()
    for thread in (*batches, recorder):
        thread.join(timeout=30)
    assert order == ["batch", "batch", "recording"]


def test_a_recording_does_not_wait_for_ever_and_lets_batches_pass_again(monkeypatch):
    monkeypatch.setattr("service.engines.padded._LONGEST_WAIT", 0.01)
    gate = _Gate()
    with gate.batch():
        with pytest.raises(EngineError, match=r"took over 0\.01 s"), gate.recording():
            pytest.fail("another batch is under way")
        with gate.batch():
            pass
    with gate.recording():
        pass
