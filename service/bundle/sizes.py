"""How many large images may be computed or asked for together, where nobody has said."""

from collections.abc import Sequence

# Pixels of all images of a batch. On processors a batch of large images gains nothing and only
# waits longer; on a GPU, or a Triton server, its maps have to fit into memory.
PROCESSOR_PIXELS, GPU_PIXELS = 2**17, 2**20


def batch_limit(most: int, images: Sequence[int], pixels: int) -> int:
    """As many images as `pixels` allow, at least 1 and at most `most`.

    Args:
        most: for small images.
        images: height and width of one.
        pixels: of all together.
    """
    height, width = images[:2]
    return max(1, min(most, pixels // (height * width)))
