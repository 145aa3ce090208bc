"""The canary: the one image that an engine draws to prove that it works, and with what."""

from service.bundle import Bundle
from service.engines import EngineError, Images, Prepared
from service.serving.encoding import PIXELS
from service.serving.jobs import resolve_jobs
from service.serving.pipeline import graph_inputs


class Canary:
    """The first golden image of a bundle; any image at all where there is no golden one.

    Args:
        bundle: what is drawn.
        filename: the graph that draws it: how far its image may be off.
    """

    def __init__(self, bundle: Bundle, filename: str) -> None:
        self._manifest = bundle.manifest
        self._tolerance = bundle.tolerance(filename)
        golden = bundle.manifest.golden
        self._golden, self._image = golden, golden.images[0] if golden else None
        seed, label = (self._image.seed, self._image.class_label) if self._image else (0, None)
        self._jobs = resolve_jobs(self._manifest, label, seed, 1, PIXELS)

    def prepare(self) -> Prepared:
        """The graph's inputs for the one image (see `Engine.generate`)."""
        return Prepared(graph_inputs(self._jobs, self._manifest))

    def compare(self, images: Images) -> None:
        """Raise EngineError when they are another image than the one published."""
        if self._golden and self._image:
            mismatch = self._golden.mismatch(self._image, images[0], self._tolerance)
            if mismatch:
                raise EngineError(f"{self._manifest.name}: {mismatch}")
