"""Small synthetic demonstrations in LIBERO's layout."""

import json
from pathlib import Path

import h5py
import numpy as np

COLOURS = np.array([[230, 20, 20], [20, 230, 20], [20, 20, 230], [230, 230, 20]], np.uint8)


def colour_actions() -> np.ndarray:
    """The action of each colour, ``(4, 7)``: two dimensions that vary, the gripper, and four that are constant."""
    actions = np.zeros((4, 7))
    actions[:, 0] = [-0.8, -0.2, 0.3, 0.9]
    actions[:, 2] = [0.5, -0.5, 0.7, -0.7]
    actions[:, 3:6] = [0.1, -0.25, 0.0]
    actions[:, 6] = [-1, 1, 1, -1]
    return actions


def colour_images(colours: np.ndarray, rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """A patch of the given colour somewhere on noise."""
    images = rng.integers(90, 140, (len(colours), size, size, 3)).astype(np.uint8)
    for image, colour in zip(images, colours, strict=True):
        row, column = rng.integers(0, size // 2, 2)
        image[row : row + size // 2, column : column + size // 2] = COLOURS[colour]
    return images


def write_demos(
    path: Path,
    n_demos: int = 8,
    n_steps: int = 20,
    *,
    instruction: str | None = "pick up the milk and place it in the basket",
    size: int = 64,
    seed: int = 0,
    attributes: dict[str, str] | None = None,
) -> Path:
    """A file whose action follows from the colour of a patch in the image."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for key, value in {"suite": "libero_object", "assets": "light", "sb3_tgrpo": "{}", **(attributes or {})}.items():
            data.attrs[key] = value
        if instruction is not None:
            data.attrs["problem_info"] = json.dumps({"language_instruction": instruction})
        for k in range(n_demos):
            colours = rng.integers(0, 4, n_steps)
            demo = data.create_group(f"demo_{k}")
            demo["actions"] = colour_actions()[colours]
            demo["obs/agentview_rgb"] = colour_images(colours, rng, size)
    return path
