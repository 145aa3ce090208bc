"""An engine that draws by numpy: all that a further embedded engine has to bring.

It is slow, and no part of the product: it shows that an engine is one file and one line, and
tests/service/engines/test_conformance.py holds it to what every engine does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import onnx
from onnx.reference import ReferenceEvaluator

from service.bundle import BASELINE
from service.engines import EngineError, Images, Inputs
from service.engines.embedded import EmbeddedEngine, Signature, check_signature


class NumpyEngine(EmbeddedEngine):
    """ONNX's own evaluator, which computes each node by numpy."""

    name = "numpy"
    reads: ClassVar[Sequence[str]] = (BASELINE,)

    @classmethod
    def installed(cls) -> bool:
        return True

    def _load(self, path: Path) -> ReferenceEvaluator:
        try:
            model = onnx.load(path)
        except Exception as error:
            raise EngineError(f"{path}: onnx cannot read it: {self._reason(error)}") from error
        check_signature(_signature(model.graph), self._bundle.manifest, path)
        self.version = onnx.__version__
        return ReferenceEvaluator(model)

    def _begin(self, session: ReferenceEvaluator) -> "_Run":
        return _Run(session)

    def _reason(self, error: Exception) -> str:
        return next(iter(str(error).splitlines()), type(error).__name__)


class _Run:
    def __init__(self, session: ReferenceEvaluator) -> None:
        self._session = session

    def __call__(self, inputs: Inputs) -> Images:
        images: Images
        (images,) = self._session.run(["images"], dict(inputs))
        return images

    def cancel(self) -> None:
        """Nothing: numpy cannot be stopped."""


def _signature(graph: Any) -> Signature:
    def described(node: Any) -> tuple[str, list[int | str]]:
        tensor = node.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        return dtype, [size.dim_param or size.dim_value for size in tensor.shape.dim]

    return {node.name: described(node) for node in (*graph.input, *graph.output)}
