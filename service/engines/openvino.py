"""The other embedded engine for processors: OpenVINO, in this process."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from service.bundle import BASELINE, CPU, Precision
from service.engines import EngineError, Images, Inputs
from service.engines.embedded import EmbeddedEngine, Signature, check_signature
from service.extras import how_to_install
from service.resources import available_cpus

# Left to itself OpenVINO computes in bfloat16 wherever the processor can, whatever the graph says.
_HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
_TYPES = {"f32": "float32", "i64": "int64", "u8": "uint8"}


class OpenVinoEngine(EmbeddedEngine):
    """One graph compiled by OpenVINO for the processors (see `EmbeddedEngine`)."""

    name = "openvino"
    reads: ClassVar[Sequence[str]] = (CPU, BASELINE, "model.bfloat16.onnx")

    @classmethod
    def installed(cls) -> bool:
        """Whether the package's extra `openvino` is."""
        return find_spec("openvino") is not None

    def _load(self, path: Path) -> "_Session":
        try:
            import openvino
            from openvino.frontend import FrontEndManager
        except ImportError as error:
            raise EngineError(
                "SID_ENGINE=openvino needs the extra `openvino`, "
                f"{how_to_install('openvino')}: {error}"
            ) from error

        if self.precision == "bfloat16" and "BF16" not in capabilities():
            raise EngineError(f"{path}: OpenVINO does not compute in bfloat16 on this processor")
        # More streams than processors would only share each one's threads.
        streams = max(1, min(self.concurrency, available_cpus() // self._threads))
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * self._threads,  # of all streams together
            "ENABLE_CPU_PINNING": False,  # several engines share the processors
        }
        try:
            # Not Core.read_model, which has every other format's reader try its luck, aloud.
            reader = FrontEndManager().load_by_framework("onnx")
            model = reader.convert(reader.load(str(path)))
            signature = _signature(model)
        except Exception as error:  # see EmbeddedEngine
            raise EngineError(f"{path}: OpenVINO cannot read it: {_last_line(error)}") from error
        check_signature(signature, self._bundle.manifest, path)
        try:
            session = _Session(model, settings)
        except Exception as error:
            raise EngineError(f"{path}: OpenVINO cannot load it: {_last_line(error)}") from error
        self.version = openvino.__version__.partition("-")[0]
        return session

    def _begin(self, session: "_Session") -> "_Session":
        return session

    def _reason(self, error: Exception) -> str:
        return _last_line(error)

    async def restart(self) -> None:
        """Leave threads and streams to their calls, which end or hang, and start others."""
        await super().restart()
        assert self._workers is not None
        self._session = await self._workers.run(self._session.again)


class _Session:
    """A compiled graph, and the requests that compute it (see `embedded.Run`).

    A request is used for one batch at a time, and again for the next: its memory is costly to get.
    """

    def __init__(self, model: Any, settings: dict[str, Any]) -> None:
        import openvino

        self._model, self._settings = model, settings
        self._compiled = openvino.Core().compile_model(model, "CPU", settings)
        self._idle: list[Any] = []

    def again(self) -> "_Session":
        """The same graph with streams of its own: a stream that hangs keeps what waits for it."""
        return _Session(self._model, self._settings)

    def __call__(self, inputs: Inputs) -> Images:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            images: Images = request.infer(inputs, share_inputs=True)["images"]  # a copy
        finally:
            self._idle.append(request)
        return images

    def cancel(self) -> None:
        """Nothing: what has begun is finished, and dropped.

        OpenVINO could stop between two nodes. But some of them then keep the size of the batch
        that was stopped, and the stream's next batch, of another size, fails or comes out wrong
        (2026.4.1; tests/service/engines/test_openvino.py).
        """


def capabilities() -> list[str]:
    """What OpenVINO computes in on this machine's processors: FP32, BF16, INT8, ..."""
    import openvino

    supported: list[str] = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return supported


def _signature(model: Any) -> Signature:
    return {
        node.any_name: (
            _TYPES.get(name := node.element_type.get_type_name(), name),
            ["?" if size.is_dynamic else size.get_length() for size in node.partial_shape],
        )
        for node in (*model.inputs, *model.outputs)
    }


def _last_line(error: Exception) -> str:
    """Its reason stands last, after the places in the source that it came through."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next(filter(None, reversed(lines)), type(error).__name__)
