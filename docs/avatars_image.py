"""Draw docs/images/avatars.png, README's image, by models/avatars (`make docs`)."""

from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from service.bundle import latents, load_bundle
from service.serving.interpolation import slerp

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "images" / "avatars.png"
COLUMNS = 12
SIDE = 64
WALK = (4, 16, 25)  # class, and the two seeds


def main() -> None:
    """Twelve seeds of each class, a class a row; below them a walk between two avatars."""
    bundle = load_bundle(ROOT / "models" / "avatars")
    session = onnxruntime.InferenceSession(bundle.graph("model.onnx"))

    def draw(noise: np.ndarray, label: int) -> np.ndarray:
        labels = np.full(len(noise), label, np.int64)
        (images,) = session.run(["images"], {"latents": noise, "class_labels": labels})
        row: np.ndarray = np.concatenate(list(images), axis=1)
        return row

    shape = (3, SIDE, SIDE)
    classes = range(len(bundle.manifest.classes))
    rows = [draw(latents(range(COLUMNS), shape), label) for label in classes]
    label, *seeds = WALK
    first, last = latents(seeds, shape)
    mixes = np.linspace(0, 1, COLUMNS)
    walk = draw(np.stack([slerp(first, last, mix) for mix in mixes]), label)
    gap = np.full((SIDE // 4, COLUMNS * SIDE, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([*rows, gap, walk])).save(TARGET, optimize=True)


if __name__ == "__main__":
    main()
