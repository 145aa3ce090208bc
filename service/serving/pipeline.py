"""The work of one batch around the graph: noise before it, files after it."""

from time import perf_counter

import numpy as np

from service.bundle import Manifest, latents
from service.engines import Images, Inputs, Latents, Terms
from service.observability.tracing import BatchTrace
from service.serving.encoding import PIXELS, encode
from service.serving.interpolation import slerp
from service.serving.jobs import Order


class Drawing:
    """What is done for a batch before and after the graph, in the engine's thread, and timed."""

    def __init__(
        self, orders: list[Order], manifest: Manifest, terms: Terms, trace: BatchTrace
    ) -> None:
        self._orders = orders
        self._manifest = manifest
        self._terms = terms
        self._trace = trace
        self.latents_seconds = 0.0
        self.encode_seconds = 0.0

    def inputs(self) -> Inputs:
        """Noise from the seeds, and the class labels."""
        started = perf_counter()
        noise = latents([order.seed for order in self._orders], self._manifest.latent_shape)
        walks = {
            i: order.toward for i, order in enumerate(self._orders) if order.toward is not None
        }
        if walks:
            ends = latents(list(walks.values()), self._manifest.latent_shape)
            for i, end in zip(walks, ends, strict=True):
                noise[i] = slerp(noise[i], end, self._orders[i].mix)
        labels = None
        if self._manifest.classes:
            labels = np.array([order.class_label for order in self._orders], dtype=np.int64)
        self.latents_seconds = perf_counter() - started
        self._terms.traceparent = self._trace.start_engine()
        return noise, labels

    def encode(self, images: Images) -> tuple[Images, list[bytes]]:
        """The images, and each as the file that was ordered."""
        self._trace.end_engine()
        started = perf_counter()
        files = [
            b"" if order.media_type == PIXELS else encode(image, order.media_type)
            for image, order in zip(images, self._orders, strict=True)
        ]
        self.encode_seconds = perf_counter() - started
        return images, files

    def _walk(self, noise: Latents) -> None:
        """Take the noise of each order that goes toward a second seed so far along its way."""
        ends = {i: order.toward for i, order in enumerate(self._orders) if order.toward is not None}
        if not ends:
            return
        for i, end in zip(ends, latents(list(ends.values()), noise.shape[1:]), strict=True):
            noise[i] = slerp(noise[i], end, self._orders[i].mix)
