"""SID_ENGINE: the engine that is named, or with auto the fastest that draws the right image."""

import asyncio
import re
import threading
from typing import ClassVar

import numpy as np
import onnx
import pytest
import structlog
from pydantic import ValidationError

from service import cli
from service.app import create_app
from service.bundle import latents, load_bundle, write_manifest
from service.engines import EngineError
from service.serving import engine_selection
from service.serving.engine_selection import make_engines
from service.settings import Settings
from tests.bundles import A_WHILE, compute, republished, write_bundle
from tests.service.client import Client
from tests.service.engines.numpy_engine import NumpyEngine
from tests.service.engines.test_cuda import why_no_card


def chosen(bundle, **settings):
    with structlog.testing.capture_logs() as lines:
        (engine,) = asyncio.run(make_engines(bundle, Settings(engine="auto", **settings)))
    return engine, [line for line in lines if line["event"] == "engine chosen"]


def test_another_engine_is_a_line_in_the_registry(tmp_path, monkeypatch):
    """From a file of the tests, to be named by SID_ENGINE and tried by auto like any other."""
    monkeypatch.setitem(engine_selection.ENGINES, "numpy", NumpyEngine)
    monkeypatch.setenv("SID_ENGINE", "numpy")
    write_bundle(tmp_path, "tiny")
    ask = {"class_label": 2, "seed": 9}
    with Client(create_app(Settings(models=tmp_path))) as client:
        card = client.get("/models/tiny").json()
        drawn = client.generate(ask, accept="application/x-npy").content
        assert client.get("/readyz").status_code == 200
    assert card["engine"] == f"numpy {onnx.__version__}"
    with Client(create_app(Settings(models=tmp_path, engine="onnxruntime"))) as client:
        assert client.generate(ask, accept="application/x-npy").content == drawn
    _, (line,) = chosen(load_bundle(tmp_path / "tiny"))
    assert "numpy float32" in f"{line['engine']} {line['because']}"


def test_a_name_that_no_engine_has_is_told_those_that_there_are(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    with pytest.raises(EngineError, match=r"SID_ENGINE: .*'auto', .*'triton', got 'tensorrt'"):
        asyncio.run(make_engines(bundle, Settings(engine="tensorrt")))


@pytest.mark.parametrize(
    ("asked", "largest"),
    [
        ({}, 8),
        ({"engine": "openvino"}, 8),
        ({"engine": "cuda"}, 8),  # of what is not recorded it computes one size alone
        ({"engine": "cuda", "precision": "float16"}, 64),
        ({"triton": "nowhere:8001"}, 8),
    ],
)
def test_the_largest_batch_is_the_engines_own_unless_one_is_asked_for(tmp_path, asked, largest):
    bundle = load_bundle(write_bundle(tmp_path, "tiny", graphs=["model.cuda.onnx"]))
    (engine,) = asyncio.run(make_engines(bundle, Settings(**asked)))
    assert engine.max_batch_size == largest
    (engine,) = asyncio.run(make_engines(bundle, Settings(max_batch_size=5, **asked)))
    assert engine.max_batch_size == 5


class Small(NumpyEngine):
    name, largest_batch = "small", 2
    sizes: ClassVar[list[int]] = []

    def _compute(self, run, prepare, finish):
        self.sizes.append(len(prepare().inputs["latents"]))
        return super()._compute(run, prepare, finish)


def test_each_engine_is_timed_and_served_in_batches_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_selection, "ENGINES", {"small": Small})
    monkeypatch.setattr(Small, "sizes", [])
    engine, _ = chosen(load_bundle(write_bundle(tmp_path, "tiny")))
    canary, *timed = engine.sizes
    assert canary == 1
    assert set(timed) == {2}
    engine.sizes.clear()
    with Client(create_app(Settings(models=tmp_path, engine="small"))) as client:
        engine.sizes.clear()  # but for the canary
        assert client.generate({"class_label": 1, "seed": 0, "n": 7}).status_code == 200
    assert sum(engine.sizes) == 7
    assert max(engine.sizes) == 2


def test_it_says_which_engine_it_took_and_how_fast_each_was(tmp_path):
    engine, (line,) = chosen(load_bundle(write_bundle(tmp_path, "tiny")))
    assert line["engine"] == f"{engine.name} {engine.precision}"
    assert "images/s" in line["because"]
    assert {"onnxruntime", "openvino"} <= set(f"{line['engine']} {line['because']}".split())


def test_an_engine_that_draws_another_image_is_never_taken(tmp_path):
    folder = write_bundle(tmp_path, "tiny")
    manifest = load_bundle(folder).manifest
    golden = manifest.golden
    wrong = golden.images[0].model_copy(update={"seed": 8})
    update = {"golden": golden.model_copy(update={"images": [wrong]})}
    write_manifest(folder, manifest.model_copy(update=update))
    with pytest.raises(EngineError, match="no engine that is installed can compute it") as refused:
        chosen(load_bundle(folder))
    assert "differ from the golden image" in str(refused.value)


@pytest.mark.usefixtures("bfloat16")
def test_a_file_that_no_engine_reads_is_named_and_another_graph_is_taken(tmp_path):
    folder = write_bundle(tmp_path, "tiny", graphs=["model.cpu.onnx", "model.bfloat16.onnx"])
    (folder / "1" / "model.cpu.onnx").write_bytes(b"not a graph")
    engine, (line,) = chosen(republished(folder), precision="any")
    assert engine.precision == "bfloat16"
    for name in ("onnxruntime", "openvino"):
        assert re.search(rf"{name} float32 refused: \S+model\.cpu\.onnx: ", line["because"])


@pytest.mark.usefixtures("bfloat16")
def test_a_precision_that_is_out_of_its_bounds_is_named_and_not_taken(tmp_path):
    folder = write_bundle(tmp_path, "tiny", graphs=["model.bfloat16.onnx"])
    graphs = load_bundle(folder).manifest.model_dump()["graphs"]
    graphs["model.bfloat16.onnx"]["bounds"]["max_difference"] = 0
    engine, (line,) = chosen(republished(folder, graphs=graphs), precision="any")
    assert engine.precision == "float32"
    assert "openvino bfloat16 refused: tiny: class 2, seed 7: " in line["because"]


def test_it_is_closed_again_and_opens_as_any(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    before = {thread.name for thread in threading.enumerate()}

    async def scenario():
        (engine,) = await make_engines(bundle, Settings(engine="auto"))
        assert {t.name for t in threading.enumerate() if "-tiny-" in t.name} <= before
        with pytest.raises(EngineError, match="not open"):
            await engine.check()
        await engine.open()
        images = await compute(engine, latents([7], (1, 8, 8)), np.array([2]))
        await engine.close()
        golden = bundle.manifest.golden
        return golden.mismatch(golden.images[0], images[0])

    assert asyncio.run(scenario()) is None


@pytest.mark.slow
def test_what_hangs_is_given_up_and_never_taken(tmp_path):
    """The canary asks for another class: it is the timing that finds it out."""
    bundle = load_bundle(write_bundle(tmp_path, "tiny", turns=5 * A_WHILE))
    with pytest.raises(
        EngineError, match=r"onnxruntime float32 refused: tiny: no answer in 0\.2 s"
    ):
        chosen(bundle, engine_seconds=0.2)


@pytest.mark.usefixtures("bfloat16")
def test_it_leaves_float32_only_when_told(tmp_path, monkeypatch):
    """However much faster another precision is on this machine: the next one would say so too."""
    monkeypatch.setattr(
        engine_selection,
        "_images_per_second",
        lambda engine, *_: _rate(2.0 if engine.precision == "bfloat16" else 1.0),
    )
    bundle = load_bundle(write_bundle(tmp_path, "tiny", graphs=["model.bfloat16.onnx"]))
    engine, (line,) = chosen(bundle)
    assert engine.precision == "float32"
    assert "bfloat16" not in line["because"]
    for told in ("bfloat16", "any"):
        assert chosen(bundle, precision=told)[0].precision == "bfloat16"
    with pytest.raises(ValidationError, match="SID_PRECISION=any has the fastest chosen"):
        Settings(precision="any")


async def _rate(images: float) -> float:
    return images


def test_a_precision_restricts_it(tmp_path):
    with pytest.raises(EngineError, match="no engine that is installed can compute it in bfloat16"):
        chosen(load_bundle(write_bundle(tmp_path, "tiny")), precision="bfloat16")


@pytest.mark.parametrize(
    ("asked", "name", "devices"),
    [
        ({}, "onnxruntime", ["cpu:0"]),
        ({"engine": "cuda"}, "onnxruntime-cuda", ["cuda:0"]),
        ({"devices": "cpu,cpu"}, "onnxruntime", ["cpu:0", "cpu:1"]),
        ({"devices": "cpu,cpu", "engine": "openvino"}, "openvino", ["cpu:0", "cpu:1"]),
        ({"devices": "cuda:2,cuda:0"}, "onnxruntime-cuda", ["cuda:2", "cuda:0"]),
        ({"triton": "nowhere:8001"}, "triton", ["triton"]),
    ],
)
def test_there_is_an_engine_for_each_device(tmp_path, asked, name, devices):
    engines = asyncio.run(
        make_engines(load_bundle(write_bundle(tmp_path, "tiny")), Settings(**asked))
    )
    assert [engine.device for engine in engines] == devices
    assert {engine.name for engine in engines} == {name}


@pytest.mark.parametrize(
    ("devices", "engine", "says"),
    [
        ("cpu,cpu", "cuda", "SID_DEVICES=cpu,cpu: cuda computes on cuda"),
        ("cuda:1", "onnxruntime", "SID_DEVICES=cuda:1: onnxruntime computes on cpu"),
        ("cuda:0,cuda:1", "openvino", "SID_DEVICES=cuda:0,cuda:1: openvino computes on cpu"),
    ],
)
def test_an_engine_that_does_not_compute_on_the_devices_is_refused(tmp_path, devices, engine, says):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    with pytest.raises(EngineError, match=f"^{says}; name such devices, or another SID_ENGINE$"):
        asyncio.run(make_engines(bundle, Settings(devices=devices, engine=engine)))


def test_auto_tries_what_computes_on_the_devices_and_takes_it_for_each(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path, "tiny"))
    two = asyncio.run(make_engines(bundle, Settings(engine="auto", devices="cpu,cpu")))
    assert [engine.device for engine in two] == ["cpu:0", "cpu:1"]
    if not engine_selection.CudaEngine.installed():
        with pytest.raises(EngineError, match="no engine that is installed can compute it"):
            asyncio.run(make_engines(bundle, Settings(engine="auto", devices="cuda:0,cuda:1")))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cards_that_are_not_there_end_the_start_in_one_line(tmp_path, monkeypatch, capsys):
    write_bundle(tmp_path, "tiny")
    monkeypatch.setenv("SID_DEVICES", "cuda:0,cuda:1")
    monkeypatch.setattr("sys.argv", ["sid", "serve", "--port", "0", "--models", str(tmp_path)])
    if why_no_card() is None:
        pytest.skip("there is a card")
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
