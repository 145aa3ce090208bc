"""Triton's configuration of a bundle (config.pbtxt), written from its manifest."""

from service.bundle import Manifest

MAX_BATCH_SIZE = 32


def triton_config(manifest: Manifest) -> str:
    """Return config.pbtxt for the onnxruntime backend.

    Batches are whatever waits when the engine frees up (no delay), as in the gateway.
    """
    resolution, channels = manifest.resolution, manifest.channels
    latents = f"dims: [ {channels}, {resolution}, {resolution} ]"
    images = f"dims: [ {resolution}, {resolution}, {channels} ]"
    inputs = [f'  {{ name: "latents" data_type: TYPE_FP32 {latents} }}']
    if manifest.classes:
        # A scalar an image: the graph takes [N], not [N, 1].
        inputs.append(
            '  { name: "class_labels" data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] } }'
        )
    return "\n".join(
        [
            "# Written by sid-distill publish; not to be edited by hand.",
            f'name: "{manifest.name}"',
            'backend: "onnxruntime"',
            f"max_batch_size: {MAX_BATCH_SIZE}",
            "input [",
            ",\n".join(inputs),
            "]",
            f'output [ {{ name: "images" data_type: TYPE_UINT8 {images} }} ]',
            "dynamic_batching { }",
            "response_cache { enable: false }",
            "",
        ]
    )
