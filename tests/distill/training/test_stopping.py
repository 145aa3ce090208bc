"""Ctrl-C in a training: answered at once, obeyed after the step; a second one does not wait."""

import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest

from tests.before_exec import TAKE_TERMINAL, before_exec
from tests.distill.test_cli import BIN, RECIPE

ANSWER = "stopping after this step"
# A step that lasts longer than anybody waits for it.
LONG_STEP = """
import sys, time
from distill.training.stop_signals import stop_requested
with stop_requested(insists=sys.argv[1] == "alone"):
    print("stepping", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def started(*command, cwd, interrupts="SIG_DFL"):
    """A process whose output is read line by line; killed if it is still there at the end.

    Args:
        interrupts: what it does at SIGINT when it begins; in a shell's background it is ignored.
    """
    process = subprocess.Popen(
        before_exec(f"signal.signal(signal.SIGINT, signal.{interrupts})", *command),
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


@pytest.mark.parametrize("interrupts", ["SIG_DFL", "SIG_IGN"])
def test_a_second_ctrl_c_does_not_wait_for_the_step(interrupts, tmp_path):
    command = [sys.executable, "-c", LONG_STEP, "alone"]
    with started(*command, cwd=tmp_path, interrupts=interrupts) as process:
        read_until(process.stdout, "stepping")
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, ANSWER)
        assert process.poll() is None, "the step goes on"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    if interrupts == "SIG_DFL":
        assert told.rstrip().endswith("KeyboardInterrupt")
    # A traceback may quote the line of code that says it.
    assert not any(line.startswith(ANSWER) for line in told.splitlines()), "it was said once"


@pytest.mark.slow
def test_ctrl_c_is_answered_and_leaves_a_checkpoint_to_go_on_from(teacher, tmp_path):
    with started(*teacher, 320000000, cwd=tmp_path) as process:
        read_until(process.stderr, "img/s")  # the first is measured at 500 images
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, ANSWER)
        told, rest = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "the same command goes on from there" in told
    assert ANSWER not in rest
    assert (tmp_path / "run" / "state.pt").is_file()


@contextlib.contextmanager
def at_a_terminal(*command, cwd):
    """A process at a terminal of a hundred columns; yields it and a reader of what is written."""
    terminal, inside = os.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        before_exec(TAKE_TERMINAL, *command),
        cwd=cwd,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    os.close(inside)

    def chunks():
        with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
            while chunk := os.read(terminal, 65536):
                yield chunk

    try:
        yield process, terminal, chunks()
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def screen(written):
    """The lines that stand there in the end: \\r goes to the left, ESC [ K clears to the right."""
    shown = []
    for line in written.decode().split("\n"):
        cells = ""
        for part in line.split("\r"):
            cells = part.removeprefix("\x1b[K") + (
                "" if part.startswith("\x1b[K") else cells[len(part) :]
            )
        shown.append(cells.rstrip())
    return shown


@pytest.fixture
def teacher(tmp_path):
    """The command of a small training, less how long."""
    from tests.distill.data.test_image_files import write_image

    for i in range(8):
        write_image(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "tiny.toml").write_text(RECIPE)
    command = [BIN / "sid-distill", "teacher", "--recipe", "tiny.toml", "--data", "photos"]
    return [*command, "--out", "run", "--device", "cpu", "--images"]


@pytest.mark.slow
def test_the_bar_of_a_whole_training_ends_at_100_percent_on_its_own_line(teacher, tmp_path):
    """Also where the last batch goes beyond the end, here 96 images of 70."""
    with at_a_terminal(*teacher, 70, cwd=tmp_path) as (process, _, chunks):
        shown = screen(b"".join(chunks))
        assert process.wait(timeout=240) == 0
    bar, said, rest = shown[-3:]
    assert bar.startswith("100%|")
    assert "| 70.0/70.0 [" in bar
    assert (said, rest) == ("96 images: run/network.safetensors", "")
    assert [line for line in shown if "img/s" in line] == [bar]


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_leaves_no_half_a_bar(teacher, tmp_path):
    with at_a_terminal(*teacher, 320000000, cwd=tmp_path) as (process, terminal, chunks):
        written, asked = b"", False
        for chunk in chunks:
            written += chunk
            if not asked and re.search(rb"[1-9][0-9.]*k?/320M", written):  # the first step is done
                os.write(terminal, b"\x03")
                asked = True
        assert process.wait(timeout=240) == 130
    shown = screen(written)
    assert not [line for line in shown if "img/s" in line]
    assert shown[-3].startswith(ANSWER)
    assert re.fullmatch("stopped at [0-9]+ images; the same command goes on from there", shown[-2])


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
