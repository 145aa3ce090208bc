"""Settings: where they come from, and that each says why one would change it."""

import pytest
from pydantic import ValidationError

from service import settings as module
from service.settings import Settings


def test_every_setting_is_documented():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_environment_sets_them(monkeypatch):
    monkeypatch.setenv("SID_MAX_BATCH_SIZE", "4")
    assert Settings().max_batch_size == 4
    assert Settings(max_batch_size=5).max_batch_size == 5


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
