"""`sid bench` on the wire: the two loops against servers that misbehave, and the command."""

import json
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from service import cli
from service.bench import BenchError, Target, closed, generate_body, open_loop
from service.bench.refusal import is_hopeless
from tests.bundles import write_bundle

pytestmark = pytest.mark.slow

# Both loops against servers that misbehave

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def raw_server(answer):
    """A server that sends what `answer(i)` returns to its i-th request; None hangs up."""
    count, lock = 0, threading.Lock()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            nonlocal count
            while self.request.recv(65536):
                with lock:
                    count += 1
                    number = count
                reply = answer(number)
                if reply is None:
                    return
                self.request.sendall(reply)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 100

        def handle_error(self, *_):
            """A client that hangs up is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Target(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()


def add_up(report):
    answered = sum(report.statuses.values()) + sum(report.errors.values())
    return report.requests == answered + report.not_sent


def test_a_stall_is_felt_by_all_that_were_due_in_it():
    """Coordinated omission: a closed loop waits out the stall and sees it once."""

    def stalling():
        paused = threading.Lock()

        def answer(number):
            with paused:
                if number == 20:
                    time.sleep(0.4)
            return GOOD

        return answer

    with raw_server(stalling()) as target:
        asked = open_loop(target, 100, arrivals="even", warmup=0, duration=0.8)
    with raw_server(stalling()) as target:
        coordinated = closed(target, 1, warmup=0, duration=0.8)
    assert asked.requests == 80
    # Due every 10 ms and held up until the stall of 0.4 s ends: half of them wait over 0.2 s.
    assert 0.3 < asked.latency.max < 3
    assert min(seconds for percent, seconds in asked.curve if percent >= 80) > 0.12
    assert asked.latency.p50 > 3 * coordinated.latency.p50
    assert coordinated.latency.p50 < 0.12 < coordinated.latency.max
    assert add_up(asked)


@pytest.mark.parametrize("load", ["closed", "open"])
def test_dropped_connections_are_counted_and_opened_again(load):
    with raw_server(lambda number: None if number % 4 == 0 else GOOD) as target:
        report = apply_load(load, target)
    assert set(report.errors) == {"dropped"}
    dropped = report.errors["dropped"]
    assert dropped
    assert report.statuses[200] == pytest.approx(3 * dropped, rel=0.4)
    assert add_up(report)


@pytest.mark.parametrize("load", ["closed", "open"])
def test_a_server_that_closes_after_each_answer_makes_no_errors(load):
    with raw_server(lambda _: CLOSING) as target:
        report = apply_load(load, target)
    assert report.errors == {}
    assert report.statuses[200] > 2


@pytest.mark.parametrize("load", ["closed", "open"])
def test_what_is_no_http_is_an_error(load):
    with raw_server(lambda _: b"SSH-2.0-OpenSSH\r\n") as target:
        report = apply_load(load, target)
    assert set(report.errors) == {"not HTTP"}
    assert report.latency is None
    assert report.requests_per_second == 0


@pytest.mark.parametrize("load", ["closed", "open"])
def test_what_is_never_answered_is_a_timeout(load):
    silence = threading.Event()
    with raw_server(lambda _: silence.wait(5) and None) as target:
        started = time.monotonic()
        report = apply_load(load, target, timeout=0.1)
        silence.set()
    assert time.monotonic() - started < 4, "nobody waits for the server's 5 s"
    # The closed loop's two were sent in the warm-up, and are not forgotten.
    assert report.errors == {"timeout": 2 if load == "closed" else report.requests}
    assert add_up(report)


def test_refusals_are_timed_apart_from_good_answers():
    def answer(number):
        if number % 2:
            time.sleep(0.1)
            return GOOD
        return REFUSED

    with raw_server(answer) as target:
        report = closed(target, 1, warmup=0, duration=0.6)
    assert set(report.statuses) == {200, 429}
    assert report.refused.p50 < 0.1 <= report.latency.p50
    assert report.requests_per_second == pytest.approx(report.statuses[200] / 0.6, rel=0.4)


def test_arrivals_beyond_the_last_connection_are_not_sent_and_said_so():
    def slow(_):
        time.sleep(0.1)
        return GOOD

    with raw_server(slow) as target:
        report = open_loop(target, 100, arrivals="even", max_connections=3, warmup=0, duration=0.5)
    assert report.connections == 3
    assert 27 <= report.not_sent <= 47, "three connections answer some fifteen of fifty"
    assert add_up(report)


def test_it_does_without_what_only_linux_has(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.setattr("service.bench.alarm.sys.platform", "darwin")
    with raw_server(lambda _: GOOD) as target:
        asked = open_loop(target, 200, arrivals="even", warmup=0, duration=0.3)
        assert set(closed(target, 2, warmup=0, duration=0.1).statuses) == {200}
    assert asked.statuses == {200: 60}
    assert asked.lag.p50 < 0.1
    assert asked.cpu_seconds_per_request < 0.004  # it waits; to spin would take 0.005


def test_a_server_that_goes_away_is_reported():
    with raw_server(lambda _: GOOD) as target:
        pass
    with pytest.raises(BenchError, match=r"^http://127.0.0.1:\d+/generate: .*refused"):
        closed(target, 1, duration=0.1)


def test_a_server_that_goes_away_under_load_is_reported():
    def answer_three(listener):
        with listener:
            listener.accept()[0].close()  # is it there?
            connection, _ = listener.accept()
            for _ in range(3):
                connection.recv(65536)
                connection.sendall(GOOD)
        connection.recv(65536)
        connection.close()

    listener = socket.create_server(("127.0.0.1", 0))
    target = Target(f"http://127.0.0.1:{listener.getsockname()[1]}")
    threading.Thread(target=answer_three, args=(listener,), daemon=True).start()
    report = closed(target, 1, warmup=0, duration=0.45)
    assert report.statuses == {200: 3}
    assert report.errors.pop("dropped") == 1
    ((reason, attempts),) = report.errors.items()
    assert reason == "connect: Connection refused"
    assert 1 <= attempts <= 5  # one every 0.1 s


def apply_load(kind, target, timeout=10.0):
    if kind == "closed":
        return closed(target, 2, warmup=0.05, duration=0.3, timeout=timeout)
    return open_loop(target, 200, warmup=0.05, duration=0.3, timeout=timeout)


# The real server


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The URL of `sid serve`; its log goes to a file, for it would fill a pipe under load."""
    folder = tmp_path_factory.mktemp("bench")
    write_bundle(folder / "models")
    sid = [sys.executable, "-m", "service.cli"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [*sid, "serve", "--port", "0", "--models", folder / "models"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as server,
    ):
        announced = server.stdout.readline()
        assert announced, (folder / "log").read_text()
        yield re.search(r"http://[0-9.:]+", announced)[0]
        server.kill()


def test_a_closed_loop_on_the_real_server(url):
    target = Target(url, body=generate_body("tiny", "Dress"))
    report = closed(target, 4, warmup=0.1, duration=0.4)
    assert set(report.statuses) == {200}
    assert report.errors == {}
    assert report.latency.count == report.requests == report.statuses[200]
    assert report.requests_per_second == pytest.approx(report.requests / 0.4, rel=0.5)
    assert {"queue", "latents", "engine", "encode"} <= set(report.stages)
    # Little's law: four are under way at any time.
    assert report.requests_per_second * report.latency.mean == pytest.approx(4, rel=0.5)


def test_an_open_loop_on_the_real_server(url):
    report = open_loop(Target(url), 60, arrivals="even", warmup=0.1, duration=0.5)
    assert report.statuses == {200: 30}
    assert report.not_sent == 0
    assert report.label == "60/s even"
    assert report.lag.p50 < 0.1


# The command


@pytest.fixture
def bench(monkeypatch, capsys):
    """Run `sid bench` with arguments; returns its status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sid", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return run


BRIEFLY = ["--warmup", 0.05, "--duration", 0.2]


def test_it_shows_and_writes_what_it_measured(bench, url, tmp_path):
    status, out, err = bench(
        url, *["-c", 1, "-c", 2, "--rate", 50, "--arrivals", "even", *BRIEFLY],
        *["--json", tmp_path / "bench.json"],
        *["-H", "X-API-Key: hunter2", "--class-label", "dress"],
    )  # fmt: skip
    assert (status, err) == (0, "")
    for words in ("1 connection", "2 connections", "50/s even", "p99.9", "engine", "200: "):
        assert words in out
    text = (tmp_path / "bench.json").read_text()
    written = json.loads(text)
    assert "hunter2" not in text
    assert written["target"] == {
        "url": f"{url}/generate",
        "body": '{"class_label": "dress", "seed": {seed}}',
    }
    first, _, last = written["reports"]
    assert (first["mode"], first["connections"], first["rate"]) == ("closed", 1, None)
    assert (last["mode"], last["rate"], last["arrivals"]) == ("open", 50, "even")
    assert last["requests"] == 10
    for report in written["reports"]:
        assert report["statuses"] == {"200": report["requests"]}
        assert set(report["latency"]) == {"count", "mean", "p50", "p90", "p99", "p99_9", "max"}
        assert report["curve"][0][1] <= report["latency"]["p50"] <= report["curve"][-1][1]
        assert report["cpu_seconds_per_request"] > 0


def test_json_on_standard_output_is_alone_there(bench, url):
    status, out, err = bench(url, "-c", 1, *BRIEFLY, "--json", "-")
    assert status == 0
    assert json.loads(out)["reports"][0]["label"] == "1 connection"
    assert "1 connection" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["http://127.0.0.1:1"], "http://127.0.0.1:1/generate: Connection refused"),
        (["http://no.such.host.invalid"], "http://no.such.host.invalid/generate: "),
        (["ftp://127.0.0.1"], "not of the form http://host:port"),
        (["-c", "0"], "connections: 0 is not a finite number above 0"),
        (["-r", "nan"], "rate: nan is not a finite number above 0"),
        (["-r", "5", "--arrivals", "odd"], "odd is not one of poisson, even"),
        (["--duration", "-1"], "duration: -1.0 is not a finite number above 0"),
        (["--n", "0"], "n: 0 is not a finite number above 0"),
        (
            ["--max-connections", "0", "-r", "5"],
            "max_connections: 0 is not a finite number above 0",
        ),
        (["--body", "{"], "the body is not JSON"),
        (["--body", "{}", "--model", "tiny"], "--body is the whole body"),
        (["-H", "no colon"], "'no colon': a header has the form"),
        (["--json", "no/such/file.json"], "no/such: there is no such folder"),
    ],
)
def test_a_mistake_is_one_line(bench, arguments, says):
    status, out, err = bench(*arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert says in err


@pytest.mark.parametrize("load", [["-c", 1, "-c", 4], ["-r", 100]])
@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--class-label", "Unicorn"], "422 Unprocessable Entity: no class is named 'Unicorn'"),
        (["--model", "gone"], "404 Not Found: "),
        (["--path", "/nothing"], "404 Not Found: there is nothing at /nothing"),
    ],
)
def test_a_load_that_is_refused_for_good_stops_and_shows_why(bench, url, load, asked, says):
    began = time.monotonic()
    status, out, err = bench(url, *load, *asked, "--warmup", 0, "--duration", 600, "--json", "-")
    assert time.monotonic() - began < 300, "it would go on for as long as it was told"
    assert (status, out) == (1, "")
    assert err.count("\n") == 1, err
    assert re.search(r"refused every request; the first of \d\d answers: 4", err)
    assert says in err


def test_what_may_pass_is_given_the_time_of_one_load(bench):
    later = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 14\r\n\r\nno\x1b[2J\nengine!"
    with raw_server(lambda _: later) as target:
        url = target.url.removesuffix("/generate")
        began = time.monotonic()
        status, out, err = bench(url, "-c", 1, "-c", 2, "--warmup", 0, "--duration", 0.5)
    assert time.monotonic() - began >= 0.5
    assert (status, out) == (1, "")
    assert err.endswith(" 503 Service Unavailable: no?[2J engine!\n")


def test_a_load_with_one_good_answer_is_reported():
    with raw_server(lambda number: GOOD if number == 1 else MISSING) as target:
        report = closed(target, 1, warmup=0, duration=0.3)
    assert report.statuses[200] == 1


@pytest.mark.parametrize(
    ("statuses", "hopeless"),
    [
        ([404] * 9, False),
        ([404] * 10, True),
        ([401, 403, 413, 422, 500] * 2, True),
        ([404] * 9 + [200], False),
        ([404] * 9 + [429], False),
        ([503] * 10, False),
    ],
)
def test_ten_refusals_for_good_are_enough(statuses, hopeless):
    assert is_hopeless(statuses) == hopeless


def test_help_explains_every_option(bench, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = bench("--help")
    assert status == 0
    options = [line for line in out.splitlines() if " --" in line]
    assert len(options) >= 15
    for line in options:
        assert len(line.strip("│| ").split("  ")[-1].split()) >= 2, line
