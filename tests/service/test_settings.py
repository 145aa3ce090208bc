"""Settings: where they come from, and that each says why one would change it."""

import re
from threading import Thread
from typing import get_args

import pytest
from pydantic import ValidationError

from service import cli
from service import settings as module
from service.engines import EngineError
from service.engines.threads import DaemonThreads
from service.settings import Settings


def test_every_setting_is_documented():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_environment_sets_them(monkeypatch):
    monkeypatch.setenv("SID_MAX_BATCH_SIZE", "4")
    assert Settings().max_batch_size == 4
    assert Settings(max_batch_size=5).max_batch_size == 5


NUMBERS = sorted(
    name
    for name, field in Settings.model_fields.items()
    if {int, float} & {field.annotation, *get_args(field.annotation)}
)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("number", ["100000000000000000000", "-1", "nan", "inf", "1e300", "many"])
def test_a_number_that_makes_no_sense_is_one_line_before_anything_starts(
    monkeypatch, capsys, name, number
):
    """Those that end a start too: more threads than a machine gives, a grace without an end."""
    monkeypatch.setenv(f"SID_{name.upper()}", number)
    monkeypatch.setattr("sys.argv", ["sid", "models"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert said.startswith(f"error: SID_{name.upper()}: Input should be ")
    assert said.endswith(f"got {number!r}\n")


@pytest.mark.parametrize("name", ["SID_THREADS", "SID_CONCURRENCY"])
def test_more_threads_than_any_machine_gives_are_one_line(monkeypatch, capsys, name):
    monkeypatch.setenv(name, "100000")
    monkeypatch.setattr("sys.argv", ["sid", "serve", "--port", "0"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "less than or equal to" in capsys.readouterr().err


def test_threads_that_the_system_refuses_are_one_line(monkeypatch):
    """A container's limit of processes may be lower than any number that we could state."""
    start, started = Thread.start, []

    def limited(thread):
        if len(started) == 3:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(Thread, "start", limited)
    with pytest.raises(EngineError, match="starts only 3 of 8 threads"):
        DaemonThreads(8, "onnxruntime-tiny")
    for thread in started:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in started), "those that were started end"


@pytest.mark.parametrize(
    "wrong", ["triton", "triton:", ":8001", "a:99999", "a:8001,,b:8001", "a b:1"]
)
def test_addresses_of_triton_that_cannot_be_are_refused_with_what_is_expected(wrong):
    with pytest.raises(ValidationError, match="host:port is expected"):
        Settings(triton=wrong)


def test_addresses_of_triton_may_have_blanks_between_them():
    assert Settings(triton="a:8001, b:8001").triton_addresses == ["a:8001", "b:8001"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "cuda"])
def test_triton_computes_or_this_process_not_both(engine):
    with pytest.raises(ValidationError, match=f"SID_ENGINE={engine} this process: leave one"):
        Settings(triton="a:8001", engine=engine)


@pytest.mark.parametrize("name", ["keys", "models"])
def test_an_empty_path_is_not_the_folder_that_the_server_runs_in(monkeypatch, name):
    monkeypatch.setenv(f"SID_{name.upper()}", "")
    with pytest.raises(ValidationError, match="a path is expected; or leave the setting out"):
        Settings()


def test_metrics_have_a_port_of_their_own_or_none():
    with pytest.raises(ValidationError, match="another than SID_PORT"):
        Settings(port=9000, metrics_port=9000)
    assert Settings(port=0, metrics_port=0).metrics_port == 0


def test_triton_needs_its_addresses():
    with pytest.raises(ValidationError, match="SID_ENGINE=triton needs SID_TRITON"):
        Settings(engine="triton")
    assert Settings(engine="triton", triton="a:8001").triton_addresses == ["a:8001"]


def test_batches_at_a_time_follow_the_engine(monkeypatch):
    monkeypatch.setattr(module, "available_cpus", lambda: 8)
    settings = Settings(threads=2, triton="a:8001,b:8001")
    engines = ("onnxruntime", "openvino", "cuda", "triton")
    assert [settings.batches_at_a_time(engine) for engine in engines] == [5, 5, 2, 8]
    assert Settings(concurrency=3).batches_at_a_time("cuda") == 3


@pytest.mark.parametrize(
    ("devices", "kind", "numbers"),
    [
        (None, None, [0]),
        ("cpu", "cpu", [0]),
        ("cpu, cpu", "cpu", [0, 1]),
        ("cuda:1", "cuda", [1]),
        ("cuda:3,cuda:0", "cuda", [3, 0]),
    ],
)
def test_devices_are_an_engine_each(devices, kind, numbers):
    settings = Settings(devices=devices)
    assert (settings.device_kind, settings.device_numbers) == (kind, numbers)


@pytest.mark.parametrize(
    ("devices", "says"),
    [
        ("gpu:0", "cpu, or cards such as cuda:0, are expected"),
        ("cuda", "cpu, or cards such as cuda:0, are expected"),
        ("cuda:-1", "cpu, or cards such as cuda:0, are expected"),
        ("cuda:00", "cpu, or cards such as cuda:0, are expected"),
        ("cpu:0", "cpu, or cards such as cuda:0, are expected"),
        ("cpu,,cpu", "cpu, or cards such as cuda:0, are expected"),
        ("", "cpu, or cards such as cuda:0, are expected"),
        ("cpu,cuda:0", "cpu or cards are expected, not both"),
        ("cuda:0,cuda:1,cuda:0", r"each card once is expected, .* \(cuda:0 is there twice\)"),
    ],
)
def test_devices_that_cannot_be_are_one_line(monkeypatch, capsys, devices, says):
    monkeypatch.setenv("SID_DEVICES", devices)
    monkeypatch.setattr("sys.argv", ["sid", "serve", "--port", "0"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert re.match(rf"error: SID_DEVICES: {says}.*, got {devices!r}\n", said)


def test_devices_are_of_this_process_and_not_of_triton():
    with pytest.raises(ValidationError, match="instance_group says, SID_DEVICES this process"):
        Settings(devices="cuda:0", triton="a:8001")


def test_sessions_on_the_processors_share_what_one_would_compute_at_a_time(monkeypatch):
    def batches(devices, cpus, **more):
        monkeypatch.setattr(module, "available_cpus", lambda: cpus)
        return Settings(devices=devices, **more).batches_at_a_time("onnxruntime")

    assert [batches(None, cpus) for cpus in (1, 2, 8)] == [2, 3, 9]
    assert [batches("cpu,cpu", cpus) for cpus in (1, 2, 8)] == [1, 2, 5]
    assert batches("cpu,cpu,cpu,cpu,cpu", 2) == 1
    assert batches("cpu,cpu", 8, threads=4) == 2
    assert batches("cpu,cpu", 8, concurrency=3) == 3, "of each, where somebody has said"
    assert Settings().threads == 1
    assert Settings(devices="cuda:0,cuda:1").batches_at_a_time("cuda") == 2
