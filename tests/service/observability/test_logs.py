"""Log lines: one form, one line each, nothing forged, nothing secret."""

import contextlib
import fcntl
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.observability import logs
from service.observability.log_writer import LineWriter
from tests.service.waiting import until

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
# A line break of any kind, terminal escapes of both kinds, text that turns round, half a character.
NASTY = ["a\nb", "a\r\nb", "\x1b[2J", "\x9b2J", "a\u2028b", "a\u202eb", "\ud800", "\x00", "a\x7fb"]


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def lines(capfd):
    """What was written to standard error since the last call."""

    def lines() -> list[str]:
        return capfd.readouterr().err.split("\n")[:-1]

    return lines


def raised(message: str, secret: str = "hidden") -> None:
    try:
        raise ValueError(message)
    except ValueError:
        assert secret
        structlog.get_logger().exception("it failed", request_id="abc")


def test_json_is_one_object_a_line_with_its_time_and_level(lines):
    logs.configure("json")
    structlog.get_logger().warning("something", ms=1.25, model="tiny", path="/a b")
    (line,) = lines()
    logged = json.loads(line)
    assert re.fullmatch(TIME, logged.pop("timestamp"))
    assert logged == {
        "level": "warning",
        "event": "something",
        "ms": 1.25,
        "model": "tiny",
        "path": "/a b",
    }


def test_for_people_it_is_time_level_event_and_fields(lines):
    logs.configure("human")
    structlog.get_logger().info("request", status=200, path="/a b=c", name="Größe", plain="/x-y_z")
    (line,) = lines()
    assert re.fullmatch(
        rf"{TIME} info    request status=200 path='/a b=c' name='Größe' plain=/x-y_z", line
    )


@pytest.mark.parametrize("log_format", ["human", "json"])
@pytest.mark.parametrize("nasty", NASTY)
def test_no_value_forges_a_line_or_reaches_the_terminal(lines, log_format, nasty):
    logs.configure(log_format)
    structlog.get_logger().info("request", path=nasty)
    structlog.get_logger().info(nasty)
    logging.getLogger("library").warning("it says %s", nasty)
    written = lines()
    assert len(written) == 3
    for line in written:
        assert line.replace("\x7f", "").isprintable()
    if log_format == "json":
        assert json.loads(written[0])["path"] == nasty


@given(st.text())
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_json_gives_back_any_text(lines, text):
    logs.configure("json")
    structlog.get_logger().info("request", path=text)
    (line,) = lines()
    assert line.isascii()
    assert json.loads(line)["path"] == text


def test_no_exception_forges_a_line_either(lines):
    logs.configure("human")
    raised("no\n2030-01-01T00:00:00.000000Z info    request status=200\x1b[2J\r\nend")
    first, *others = lines()
    assert first.endswith("it failed request_id=abc")
    assert any("ValueError: no" in line for line in others), "the traceback is there"
    assert any("test_logs.py" in line for line in others)
    for line in others:
        assert line.startswith("    ")
        assert line.isprintable()


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_tracebacks_show_no_variables(lines, log_format):
    logs.configure(log_format)
    raised("no", secret="hunter2-" + "x" * 3)
    assert "hunter2-xxx" not in "\n".join(lines())


def test_an_exception_in_json_is_structured_and_still_one_line(lines):
    logs.configure("json")
    raised("no\nno")
    (line,) = lines()
    logged = json.loads(line)
    (exception,) = logged["exception"]
    assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "no\nno")
    assert exception["frames"][-1]["name"] == "raised"
    assert logged["request_id"] == "abc"


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_the_lines_of_libraries_have_the_same_form(lines, log_format):
    logs.configure(log_format)
    try:
        raise OSError("no")
    except OSError:
        logging.getLogger("library").exception("it broke on %s\n", "Monday")
    first, *others = lines()
    if log_format == "json":
        logged = json.loads(first)
        assert (logged["event"], logged["logger"]) == ("it broke on Monday", "library")
        assert logged["exception"][0]["exc_type"] == "OSError"
        assert not others
    else:
        assert re.fullmatch(rf"{TIME} error   it broke on Monday logger=library", first)
        assert others[-1] == "    OSError: no"


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_the_level_holds_for_ours_and_the_libraries(lines, log_format):
    for level, expected in [("debug", 8), ("info", 6), ("warning", 4), ("error", 2)]:
        logs.configure(log_format, level)
        for logger in (structlog.get_logger(), logging.getLogger("library")):
            for method in ("debug", "info", "warning", "error"):
                getattr(logger, method)("x")
        assert len(lines()) == expected


def test_a_value_of_any_type_is_written(lines):
    class Odd:
        def __repr__(self) -> str:
            return "<odd\n>"

    for log_format in ("human", "json"):
        logs.configure(log_format)
        structlog.get_logger().info("x", odd=Odd(), huge=2**70, nothing=None, many=["a", 1])
        (line,) = lines()
        assert str(2**70) in line


def test_a_log_that_cannot_be_written_fails_nothing(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    logs.configure("json")
    monkeypatch.setattr(os, "write", full)
    structlog.get_logger().error("x")
    logging.getLogger("library").error("x")
    with logs.unblocked():
        structlog.get_logger().error("x")
        logging.getLogger("library").error("x")
        until(lambda: logs.dropped() == 2)


# A reader that stalls: nobody waits for it, what finds no room is counted, and it is told.


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


LINE = b"x" * 99 + b"\n"


def drained(reader: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(reader, 1 << 16)
    return data


def test_lines_arrive_in_order_from_several_threads_and_whole(pipe):
    writer = LineWriter(pipe[1])

    def write(name: str) -> None:
        for number in range(500):
            writer.write(f"{name} {number} {'y' * (number % 300)}\n".encode())

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    seen: dict[str, int] = dict.fromkeys("abc", 0)
    with os.fdopen(pipe[0]) as reader:
        for _ in range(1500):
            name, number, padding = reader.readline()[:-1].split(" ")
            assert int(number) == seen[name]
            assert padding == "y" * (seen[name] % 300)
            seen[name] += 1
    assert writer.dropped == 0


def test_a_reader_that_stalls_holds_nobody_and_what_is_lost_is_counted_and_told(pipe):
    writer = LineWriter(pipe[1], limit=10_000)
    writer.notice = lambda lines: b"lost %d\n" % lines
    full = os.write(pipe[1], bytes(fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ)))
    started = time.monotonic()
    for _ in range(5000):
        writer.write(LINE)
    assert not writer.flush(0.1)
    assert time.monotonic() - started < 30
    assert 4000 < writer.dropped < 5000
    kept = 5000 - writer.dropped
    told = b"lost %d\n" % writer.dropped
    got = drained(pipe[0], full + kept * len(LINE) + len(told))[full:]
    assert got.replace(told, b"") == LINE * kept
    assert writer.flush(5)
    writer.write(LINE)
    assert os.read(pipe[0], 1000) == LINE, "and all is as before"


def test_a_reader_that_is_slow_loses_nothing_that_fits(pipe):
    writer = LineWriter(pipe[1])
    for _ in range(2000):
        writer.write(LINE)
    assert not writer.flush(0.05)
    assert drained(pipe[0], 2000 * len(LINE)) == 2000 * LINE
    assert writer.flush(5)


def test_a_pipe_that_another_program_made_non_blocking_loses_nothing_either(pipe):
    os.set_blocking(pipe[1], False)
    writer = LineWriter(pipe[1])
    for _ in range(2000):
        writer.write(LINE)
    assert drained(pipe[0], 2000 * len(LINE)) == 2000 * LINE
    assert writer.dropped == 0


def test_a_reader_that_left_is_no_fault(pipe):
    writer = LineWriter(pipe[1])
    os.close(pipe[0])
    writer.write(LINE)
    assert writer.flush(5)
    assert writer.dropped == 1


CODE = """
import sys, threading, warnings
from service.observability import logs
import structlog
logs.configure("human")
with logs.unblocked():
    for number in range({count}):
        structlog.get_logger().info("line", number=number)
        print("printed", number, file=sys.stderr)
        warnings.warn(f"warned {{number}}")
    print("done", flush=True)
structlog.get_logger().info("the end")
"""


@pytest.mark.slow
def test_what_is_printed_and_warned_of_waits_for_nobody_either():
    """Nothing is read until the process has ended, and it ends."""
    code = CODE.format(count=3000)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    try:
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()


def test_the_last_lines_get_out_when_the_process_ends():
    code = CODE.format(count=200)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "done\n"
    assert [f"number={number}\n" in done.stderr for number in range(200)] == [True] * 200
    assert "printed 199" in done.stderr
    assert "warned 199" in done.stderr
    assert "the end" in done.stderr


KEEPS_THE_INTERPRETER = """
import ctypes
from service.observability import logs
logs.configure("json")
with logs.unblocked():
    ctypes.PyDLL(None).write(2, (b"x" * 99 + b"\\n") * 3000, 300_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pipes have one size there")
def test_native_code_that_keeps_the_interpreter_may_write_more_than_a_usual_pipe_holds():
    done = subprocess.run(
        [sys.executable, "-c", KEEPS_THE_INTERPRETER], capture_output=True, timeout=60, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["event"] for line in lines} == {"x" * 99}
    assert len(lines) == 3000
