"""The embedded engine on an NVIDIA GPU: ONNX Runtime's CUDA provider, replaying CUDA graphs.

A network of this kind is some hundred small kernels, and starting them one by one takes longer than
they do. Recorded once for each size of a batch, they are started together.
"""

import ctypes
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import ClassVar, NamedTuple

import structlog

from service.bundle import BASELINE, CUDA, GPU_PIXELS, sha256_file
from service.engines import EngineError, Images, Inputs
from service.engines.embedded import Run
from service.engines.onnx import SILENT, OnnxEngine, first_line
from service.engines.padded import PaddedSession

log = structlog.get_logger(__name__)

# pip writes onnxruntime, which the base asks for, over onnxruntime-gpu: both are one folder.
_INSTALL = (
    "`make setup-gpu` in the checkout, or an image built with `--build-arg EXTRAS=gpu`; if it is "
    "installed, onnxruntime lies over it: pip install --force-reinstall --no-deps onnxruntime-gpu"
)
_MISSING = re.compile(r"(lib[\w.-]+): cannot open shared object file")
_NO_CARD = re.compile(r"Invalid device ID: (\d+), must be between 0 \(inclusive\) and (\d+)")
_FAILURE = re.compile(r"CUDA failure (\d+): (.*?) ;")
# By CUDA's numbers of failures.
_ADVICE = {
    "35": "update the NVIDIA driver, or install one",
    "100": "look at nvidia-smi and CUDA_VISIBLE_DEVICES; a container needs --gpus all",
    "803": "restart the machine after an update of the driver",
}


# ONNX Runtime before onnxruntime#32121 (August 2026) replays a Concat or Split of unequal parts
# with what another size of batch left, and some products too: model.cuda.onnx is written without
# them, the portable graphs are not.
_RECORDABLE = (CUDA,)


class Provider(NamedTuple):
    """What a `CudaEngine` computes on.

    Attributes:
        name: of ONNX Runtime's execution provider.
        memory: as ONNX Runtime calls its memory: `cuda` or `cpu`.
        options: for every graph.
    """

    name: str
    memory: str
    options: Mapping[str, str]


class CudaEngine(OnnxEngine):
    """One ONNX Runtime session on one NVIDIA GPU (see `EmbeddedEngine`): the first, or `number`.

    The GPU computes one batch at a time; the threads of the others make noise and files meanwhile.
    bfloat16 is not among its precisions, for the provider has no such convolutions.

    Attributes:
        recordable: the graphs that it records as CUDA graphs.
        provider: what it computes with.
    """

    name = "onnxruntime-cuda"
    kind: ClassVar[str] = "cuda"
    reads: ClassVar[Sequence[str]] = (BASELINE, CUDA, "model.float16.onnx")
    largest_batch: ClassVar[int] = 64
    pixels: ClassVar[int] = GPU_PIXELS
    recordable: ClassVar[Sequence[str]] = _RECORDABLE
    provider: ClassVar[Provider] = Provider(
        "CUDAExecutionProvider",
        "cuda",
        {
            # Else what the graph calls float32 is computed with 10 bits of mantissa.
            "use_tf32": "0",
            # Not the default, which times every algorithm at every size: another choice after each
            # start draws other last bits.
            "cudnn_conv_algo_search": "HEURISTIC",
            "do_copy_in_default_stream": "1",
            # Memory as it is asked for, not doubled each time: several models share the card.
            "arena_extend_strategy": "kSameAsRequested",
        },
    )

    def _largest_batch(self) -> int:
        # What is not recorded is filled up to the one size that there is.
        recorded = self.filename in self.recordable
        return self.largest_batch if recorded else OnnxEngine.largest_batch

    @classmethod
    def installed(cls) -> bool:
        """Whether this ONNX Runtime was built for the device, which may be missing all the same."""
        import onnxruntime

        return cls.provider.name in onnxruntime.get_available_providers()

    def _load(self, path: Path) -> PaddedSession:
        if not self.installed():
            raise EngineError(
                f"{path}: the ONNX Runtime that is installed has no {self.provider.name}: "
                f"{_INSTALL}"
            )
        _load_libraries()
        if self.filename not in self.recordable:
            return self._open_padded(path, recorded=False)
        try:
            return self._open_padded(path, recorded=True)
        except EngineError as error:
            session = self._open_padded(path, recorded=False)  # raises what else is wrong
            log.warning(
                "CUDA graphs cannot be recorded: batches are computed without, which is slower",
                model=self._bundle.manifest.name,
                reason=str(error),
            )
            return session

    def _open_padded(self, path: Path, *, recorded: bool) -> PaddedSession:
        """A session with its buffers, each size of a batch computed once.

        Raises:
            EngineError: naming the file; the device is not there, or cannot compute it (so).
        """
        options = dict(self.provider.options)
        if self._number:  # asked for the first by number, it says less where there is none
            options["device_id"] = str(self._number)
        if recorded:
            options["enable_cuda_graph"] = "1"
        session = self._open(path, [(self.provider.name, options)])
        # ONNX Runtime says nothing when it cannot have the GPU, and computes without it.
        if self.provider.name not in (providers := session.get_providers()):
            raise EngineError(
                f"{path}: ONNX Runtime cannot use the GPU and fell back to "
                f"{', '.join(providers)}: {_why_no_provider()}"
            )
        try:
            padded = PaddedSession(
                session,
                self._bundle.manifest.signature,
                limit=self.max_batch_size,
                device=(self.provider.memory, self._number),
                recorded=recorded,
                name=f"{self.name}-{self._bundle.manifest.name}-{self.device}-session",
            )
            try:
                padded.warm_up()
            except BaseException:
                padded.end()
                raise
        except Exception as error:  # see EmbeddedEngine
            raise EngineError(f"{path}: the first batches failed: {self._reason(error)}") from error
        return padded

    def _begin(self, session: PaddedSession) -> Run:
        return _Run(session)

    def _reason(self, error: Exception) -> str:
        return explain(str(error)) or type(error).__name__

    async def restart(self) -> None:
        """Start other threads; and another session, where a batch that hangs holds the buffers."""
        await super().restart()
        if self._session is not None and self._session.busy:
            assert self._workers is not None
            hanging, self._session = self._session, await self._workers.run(self._load_again)
            hanging.end()

    async def close(self) -> None:
        """Free the graph; a batch that hangs is left behind, not waited for."""
        session = self._session
        await super().close()
        if session is not None:
            await session.stop()

    def _load_again(self) -> PaddedSession:
        """A session for the same graph, which records nothing: that would wait for what hangs."""
        path, manifest = self._bundle.graph(self.filename), self._bundle.manifest
        try:
            digest = sha256_file(path)
        except OSError as error:
            raise EngineError(f"{path}: {error.strerror}") from error
        if digest != manifest.files[f"{manifest.version}/{self.filename}"]:
            raise EngineError(f"{path}: it has changed since it was opened; start the server anew")
        return self._open_padded(path, recorded=False)


class _Run:
    """One batch (see `embedded.Run`)."""

    def __init__(self, session: PaddedSession) -> None:
        import onnxruntime

        self._session = session
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = SILENT

    def __call__(self, inputs: Inputs) -> Images:
        return self._session.run(inputs, self._options)

    def cancel(self) -> None:
        # Ends a batch that waits, or that is computed node by node; a replay ends by itself.
        self._options.terminate = True


def explain(message: str) -> str:
    """What ONNX Runtime or the loader says of a GPU that cannot be used, in one line for people."""
    if missing := _MISSING.search(message):
        if missing[1].startswith("libcuda."):
            return (
                f"the NVIDIA driver is not installed ({missing[1]} is missing); "
                "a container needs --gpus all"
            )
        return f"{missing[1]} is missing: {_INSTALL}"
    if card := _NO_CARD.search(message):
        return (
            f"there is no card cuda:{card[1]}: this process sees {card[2]}, counted from cuda:0; "
            "look at nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    if failure := _FAILURE.search(message):
        number, text = failure.groups()
        line = f"CUDA failure {number}: {text}"
        return f"{line}: {_ADVICE[number]}" if number in _ADVICE else line
    return first_line(message)


def _load_libraries() -> None:
    """Load CUDA's and cuDNN's libraries from where pip put them, unless they are loaded.

    The loader would not look there. What is missing is told by `_why_no_provider`, in one line,
    and not by what ONNX Runtime prints here and logs later.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(SILENT)
    with redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls(directory="")


def _why_no_provider() -> str:
    """Why ONNX Runtime could not load its CUDA provider: it only logs it."""
    import onnxruntime

    provider = Path(onnxruntime.__file__).with_name("capi") / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(provider))
    except OSError as error:
        return explain(str(error))
    return "the driver, CUDA or cuDNN does not fit"
