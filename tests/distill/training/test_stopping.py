"""Ctrl-C in a training: answered at once, obeyed after the step; a second one does not wait."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from tests.distill.test_cli import BIN, RECIPE

ANSWER = "stopping after this step"
# A step that lasts longer than anybody waits for it.
LONG_STEP = """
import sys, time
from distill.training.loop import _stop_requested
with _stop_requested(insists=sys.argv[1] == "alone"):
    print("stepping", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def started(*command, cwd):
    """A process whose output is read line by line; killed if it is still there at the end."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(stream, text):
    """Read lines up to the one that holds `text`; tqdm's are parts of one."""
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"ended without {text!r}: {lines}")


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path):
    with started(sys.executable, "-c", LONG_STEP, "alone", cwd=tmp_path) as process:
        read_until(process.stdout, "stepping")
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, ANSWER)
        assert process.poll() is None, "the step goes on"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    assert process.returncode != 0
    assert told.rstrip().endswith("KeyboardInterrupt")
    assert ANSWER not in told, "it was said once"


@pytest.mark.slow
def test_ctrl_c_is_answered_and_leaves_a_checkpoint_to_go_on_from(tmp_path):
    from tests.distill.data.test_image_files import write_image

    for i in range(8):
        write_image(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    command = [BIN / "sid-distill", "teacher", "--recipe", "tiny.toml", "--data", "photos"]
    command += ["--out", "run", "--images", "320000000", "--device", "cpu"]
    with started(*command, cwd=tmp_path) as process:
        read_until(process.stderr, "img/s")  # the first is measured at 500 images
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, ANSWER)
        told, rest = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "the same command goes on from there" in told
    assert ANSWER not in rest
    assert (tmp_path / "run" / "state.pt").is_file()


def test_under_torchrun_the_processes_say_nothing_and_do_not_insist(tmp_path):
    """It passes on what the terminal has sent already: each process is told twice."""
    with started(sys.executable, "-c", LONG_STEP, "of several", cwd=tmp_path) as process:
        read_until(process.stdout, "stepping")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.kill()
        assert process.communicate()[1] == ""
