"""The engine for NVIDIA GPUs: all but CUDA itself on the processors, that where there is a card.

model.cuda.onnx has nodes that only CUDA computes, so it is model.onnx that is drawn here.
"""

import asyncio
import ctypes
import re
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import structlog

from service.bundle import BASELINE, CUDA, latents, load_bundle
from service.engines import EngineError, Prepared
from service.engines.cuda import CudaEngine, explain
from service.engines.onnx import OnnxEngine
from service.engines.padded import PaddedSession
from tests.bundles import FOR_EVER, compute, graph_inputs, republished, write_bundle
from tests.service.engines.padded_engine import PaddedEngine, drawn_for
from tests.service.waiting import happens

SHIPPED = Path(__file__).parents[3] / "models" / "fashion"


@asynccontextmanager
async def opened(engine):
    try:
        await engine.open()
        yield engine
    finally:
        await engine.close()


def test_a_shipped_model_draws_the_plain_engines_pixels_in_batches_of_any_size():
    class Baseline(OnnxEngine):
        reads = (BASELINE,)

    bundle = load_bundle(SHIPPED)

    async def scenario():
        engine = PaddedEngine(bundle, threads=1, concurrency=2, max_batch_size=16)
        plain = Baseline(bundle, threads=1, concurrency=1)
        async with opened(engine), opened(plain):
            expected = await compute(plain, *drawn_for(bundle, 16))
            for count in (*range(1, 10), 15, 16):
                images = await compute(engine, *drawn_for(bundle, count))
                assert np.array_equal(images, expected[:count])

    asyncio.run(scenario())


def test_batches_of_many_sizes_at_the_same_time_do_not_mix(models):
    bundle = load_bundle(models / "tiny")
    noise, labels = drawn_for(bundle, 24)
    parts = [slice(first, first + count) for first in range(0, 24, 6) for count in range(1, 7)]

    async def scenario():
        engine = PaddedEngine(bundle, threads=1, concurrency=4, max_batch_size=24)
        async with opened(engine):
            expected = await compute(engine, noise, labels)
            answers = await asyncio.gather(*(compute(engine, noise[p], labels[p]) for p in parts))
            for part, images in zip(parts, answers, strict=True):
                assert np.array_equal(images, expected[part])

    asyncio.run(scenario())


@pytest.fixture
def endless(tmp_path, monkeypatch):
    """A bundle that computes its first class for ever, and an engine for it that is not warm.

    Batches are of zeros when engines warm up: of the first class.
    """
    monkeypatch.setattr(PaddedSession, "warm_up", lambda _: None)
    bundle = load_bundle(write_bundle(tmp_path, turns=FOR_EVER))
    return bundle, PaddedEngine(bundle, threads=1, concurrency=2, max_batch_size=2)


class Begun:
    """A batch that never ends, and when it has begun: the device is taken, all else is free."""

    def __init__(self, engine):
        self._inputs = Prepared(graph_inputs(latents([0], (1, 8, 8)), np.array([0])))
        self._prepared = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.task = asyncio.create_task(engine.generate(self._prepare, lambda images: images))

    def _prepare(self):
        self._loop.call_soon_threadsafe(self._prepared.set)
        return self._inputs

    async def wait(self, engine):
        await self._prepared.wait()
        await happens(lambda: engine._session.busy)


def test_the_next_batch_is_prepared_while_one_is_computed(endless):
    _, engine = endless

    async def scenario():
        async with opened(engine):
            first = Begun(engine)
            await first.wait(engine)
            second = Begun(engine)
            await second._prepared.wait()
            assert not first.task.done()
            for begun in (first, second):
                begun.task.cancel()
            await asyncio.gather(first.task, second.task, return_exceptions=True)

    asyncio.run(scenario())


def test_a_cancelled_batch_ends_and_one_that_waited_is_never_computed(endless):
    bundle, engine = endless

    async def scenario():
        async with opened(engine):
            running = Begun(engine)
            await running.wait(engine)
            waiting = Begun(engine)
            await waiting._prepared.wait()
            waiting.task.cancel()
            running.task.cancel()
            ended = await asyncio.gather(running.task, waiting.task, return_exceptions=True)
            assert {type(end) for end in ended} == {asyncio.CancelledError}
            # Else it would wait for ever, behind either.
            images = await compute(engine, latents([7], (1, 8, 8)), np.array([2]))
            golden = bundle.manifest.golden
            assert golden.mismatch(golden.images[0], images[0]) is None

    asyncio.run(scenario())


def test_a_batch_that_hangs_is_left_behind_with_its_buffers(endless):
    bundle, engine = endless

    async def scenario():
        async with opened(engine):
            hanging = Begun(engine)
            await hanging.wait(engine)
            before = engine._session
            await engine.restart()
            assert engine._session is not before
            images = await compute(engine, latents([7], (1, 8, 8)), np.array([2]))
            golden = bundle.manifest.golden
            assert golden.mismatch(golden.images[0], images[0]) is None
            assert before.busy
            hanging.task.cancel()

    asyncio.run(scenario())


def test_a_restart_that_needs_the_file_again_refuses_another_one(endless):
    bundle, engine = endless

    async def scenario():
        async with opened(engine):
            hanging = Begun(engine)
            await hanging.wait(engine)
            bundle.graph(BASELINE).write_bytes(b"another graph")
            with pytest.raises(EngineError, match=r"model\.onnx: it has changed since"):
                await engine.restart()
            bundle.graph(BASELINE).unlink()
            with pytest.raises(EngineError, match=r"model\.onnx: No such file"):
                await engine.restart()
            hanging.task.cancel()

    asyncio.run(scenario())


class Unrecordable(PaddedEngine):
    """A graph with a node that is not on the card: ONNX Runtime refuses to record it."""

    name = "unrecordable"

    def _open(self, path, providers):
        if "enable_cuda_graph" in dict(providers)[self.provider.name]:
            raise EngineError(f"{path}: not all nodes have been partitioned to the provider")
        return super()._open(path, providers)


def test_a_graph_that_cannot_be_recorded_is_computed_without_and_the_log_says_so_once(models):
    bundle = load_bundle(models / "tiny")

    async def scenario():
        async with opened(Unrecordable(bundle, threads=1, concurrency=1)) as engine:
            return await compute(engine, *drawn_for(bundle, 3))

    with structlog.testing.capture_logs() as lines:
        images = asyncio.run(scenario())
    assert images.shape == (3, 8, 8, 1)
    (line,) = lines
    assert (line["log_level"], line["model"]) == ("warning", "tiny")
    assert "CUDA graphs cannot be recorded" in line["event"]
    assert "not all nodes have been partitioned" in line["reason"]


def test_a_portable_graph_is_not_recorded(models):
    """ONNX Runtime before onnxruntime#32121 replays a Concat of unequal maps wrongly."""
    assert CudaEngine.recordable == (CUDA,)

    class Portable(Unrecordable):
        recordable = CudaEngine.recordable

    async def scenario():
        async with opened(Portable(load_bundle(models / "tiny"), threads=1, concurrency=1)):
            pass

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    assert not lines


@pytest.mark.parametrize("content", [b"not a graph", b""])
def test_what_is_no_graph_is_one_error_by_name_and_no_warning(models, content):
    (models / "tiny" / "1" / "model.onnx").write_bytes(content)
    engine = PaddedEngine(republished(models / "tiny"), threads=1, concurrency=1)
    with (
        structlog.testing.capture_logs() as lines,
        pytest.raises(
            EngineError, match=r"1/model\.onnx: ONNX Runtime cannot load it: ."
        ) as caught,
    ):
        asyncio.run(opening(engine))
    assert "\n" not in str(caught.value)
    assert not lines


# What ONNX Runtime 1.31 and the loader said on a machine without a GPU, and over a driver's library
# that answers so.
CALL = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, "
    "void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, "
    "SUCCTYPE, const char*, const char*, int) [with ERRTYPE = cudaError; bool THRW = true] "
)
WHERE = (
    " ; GPU=-1 ; hostname=vm ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/"
    "cuda_execution_provider.cc ; line=355 ; expr=cudaSetDevice(info_.device_id); \n\n"
)


@pytest.mark.parametrize(
    ("message", "explained"),
    [
        (
            "libcublasLt.so.13: cannot open shared object file: No such file or directory",
            r"^libcublasLt\.so\.13 is missing: `make setup-gpu`",
        ),
        (
            "libcuda.so.1: cannot open shared object file: No such file or directory",
            r"^the NVIDIA driver is not installed \(libcuda\.so\.1 is missing\)",
        ),
        (
            f"{CALL}CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"
            f"{WHERE}",
            r"^CUDA failure 35: CUDA driver version is insufficient .*: update the NVIDIA driver",
        ),
        (
            f"{CALL}CUDA failure 100: no CUDA-capable device is detected{WHERE}",
            r"^CUDA failure 100: no CUDA-capable device is detected: look at nvidia-smi",
        ),
        (
            f"{CALL}CUDA failure 803: system has unsupported display driver / cuda driver "
            f"combination{WHERE}",
            r"^CUDA failure 803: system has unsupported .*: restart the machine",
        ),
        (f"{CALL}CUDA failure 2: out of memory{WHERE}", r"^CUDA failure 2: out of memory$"),
        (
            "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:51 "
            "onnxruntime::CUDAExecutionProviderInfo::FromProviderOptions 0 <= info.device_id && "
            "info.device_id < num_devices was false. Invalid device ID: 7, must be between 0 "
            "(inclusive) and 2 (exclusive).",
            r"^there is no card cuda:7: this process sees 2, counted from cuda:0; look at",
        ),
        ("something else\nand more", r"^something else$"),
    ],
)
def test_why_a_gpu_cannot_be_used_is_one_line_that_says_what_to_do(message, explained):
    assert "\n" not in explain(message)
    assert re.search(explained, explain(message))


def test_cuda_is_refused_where_this_onnx_runtime_has_none(models):
    if CudaEngine.installed():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    engine = CudaEngine(load_bundle(models / "tiny"), threads=1, concurrency=1)
    with pytest.raises(EngineError, match=r"1/model\.onnx: .* no CUDAExecutionProvider.*gpu"):
        asyncio.run(opening(engine))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_is_refused_where_onnx_runtime_silently_computes_without_it(models, monkeypatch):
    if CudaEngine.installed():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    monkeypatch.setattr(CudaEngine, "installed", lambda _: True)
    engine = CudaEngine(load_bundle(models / "tiny"), threads=1, concurrency=1)
    with pytest.raises(
        EngineError, match=r"1/model\.onnx: .* fell back to CPUExecutionProvider: .*is missing"
    ):
        asyncio.run(opening(engine))


@pytest.mark.parametrize(("number", "asked"), [(0, None), (1, "1")])
def test_session_and_buffers_are_on_the_card_of_its_number(models, monkeypatch, number, asked):
    given, memory = [], []
    made = onnxruntime.OrtValue.ortvalue_from_shape_and_type

    class Numbered(PaddedEngine):
        def _open(self, path, providers):
            given.extend(providers)
            return super()._open(path, providers)

    def noted(shape, dtype, *device):
        memory.append(device)
        return made(shape, dtype, *device)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", noted)
    bundle = load_bundle(models / "tiny")

    async def scenario():
        numbered = Numbered(bundle, threads=1, concurrency=1, number=number)
        plain = PaddedEngine(bundle, threads=1, concurrency=1)
        async with opened(numbered), opened(plain):
            assert numbered.device == f"cuda:{number}"
            drawn = [await compute(one, *drawn_for(bundle, 3)) for one in (numbered, plain)]
            assert np.array_equal(*drawn)

    asyncio.run(scenario())
    assert {options.get("device_id") for _, options in given} == {asked}
    assert set(memory) == {("cpu", number), ("cpu", 0)}


def test_it_takes_the_graph_that_is_written_for_cuda_and_none_for_processors(tmp_path):
    graphs = ["model.cpu.onnx", "model.float16.onnx", CUDA]
    bundle = load_bundle(write_bundle(tmp_path / "a", graphs=graphs))
    of_float16 = CudaEngine(bundle, precision="float16", threads=1, concurrency=1)
    assert (of_float16.filename, of_float16.precision) == (CUDA, "float16")
    assert CudaEngine(bundle, threads=1, concurrency=1).filename == BASELINE
    older = load_bundle(write_bundle(tmp_path / "b", graphs=["model.float16.onnx"]))
    older_engine = CudaEngine(older, precision="float16", threads=1, concurrency=1)
    assert older_engine.filename == "model.float16.onnx"


def test_bfloat16_is_refused_saying_which_precisions_there_are(tmp_path):
    graphs = ["model.float16.onnx", "model.bfloat16.onnx", CUDA]
    bundle = load_bundle(write_bundle(tmp_path, graphs=graphs))
    with pytest.raises(
        EngineError,
        match=r"^tiny: onnxruntime-cuda cannot compute it in bfloat16; .* reads float32, float16$",
    ):
        CudaEngine(bundle, precision="bfloat16", threads=1, concurrency=1)


def why_no_card() -> str | None:
    """Why tests that need a card cannot run here; None: they can."""
    if not CudaEngine.installed():
        return "this ONNX Runtime has no CUDA provider: make setup-gpu"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver: {error}"
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "no NVIDIA card"
    return None


@pytest.fixture
def card():
    if why := why_no_card():
        pytest.skip(why)


@pytest.mark.gpu
@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_on_a_card_batches_of_any_size_are_recorded_and_draw_the_right_images(precision):
    bundle = load_bundle(SHIPPED)

    async def scenario():
        engine = CudaEngine(bundle, precision=precision, threads=1, concurrency=2)
        plain = OnnxEngine(bundle, threads=1, concurrency=1)
        async with opened(engine), opened(plain):
            expected = await compute(plain, *drawn_for(bundle, 64))
            bounds = bundle.tolerance(engine.filename) or bundle.manifest.golden
            counts = (1, 2, 3, 5, 8, 13, 16, 31, 33, 64)
            for count in (count for count in counts if count <= engine.max_batch_size):
                images = await compute(engine, *drawn_for(bundle, count))
                difference = np.abs(images.astype(int) - expected[:count])
                assert difference.max() <= bounds.max_difference
            parts = [slice(first, first + 4) for first in range(0, 64, 4)]
            noise, labels = drawn_for(bundle, 64)
            answers = await asyncio.gather(*(compute(engine, noise[p], labels[p]) for p in parts))
            difference = np.abs(np.concatenate(answers).astype(int) - expected)
            assert difference.max() <= bounds.max_difference
            await engine.restart()
            await compute(engine, noise[:8], labels[:8])

    with structlog.testing.capture_logs() as lines:
        asyncio.run(scenario())
    if bundle.holds(CUDA) and precision == "float16":
        assert not lines, "each size is recorded as a CUDA graph"


async def opening(engine):
    try:
        await engine.open()
    finally:
        await engine.close()
