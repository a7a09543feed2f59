"""Small synthetic demonstrations in LIBERO's layout."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

BBQ_SAUCE = "pick_up_the_bbq_sauce_and_place_it_in_the_basket"
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


def libero_file(path: Path, change: Callable[[h5py.File], None] | None = None, like_libero: bool = True) -> Path:
    """Two demonstrations of 12 steps as LIBERO's own script writes them, or as OpenVLA's preparation does (no attributes)."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if like_libero:
            problem = {"problem_name": "libero_floor_manipulation", "domain_name": "robosuite"}
            words = list("pick up the bbq sauce and place it in the basket")
            data.attrs["problem_info"] = json.dumps({**problem, "language_instruction": words})
            data.attrs["macros_image_convention"] = "opengl"
            data.attrs["bddl_file_name"] = f"somewhere/bddl_files/libero_object/{BBQ_SAUCE}.bddl"
            data.attrs["env_args"] = json.dumps({"type": 1, "env_name": "Libero_Floor_Manipulation"})
            data.attrs["num_demos"], data.attrs["total"] = 2, 24
        for i in range(2):
            demo = data.create_group(f"demo_{i}")
            demo["actions"] = rng.uniform(-1, 1, (12, 7))
            demo["states"] = rng.normal(size=(12, 110))
            demo["robot_states"] = rng.normal(size=(12, 9))
            demo["rewards"] = demo["dones"] = np.eye(12, dtype=np.uint8)[-1]
            for name, width in (("ee_pos", 3), ("ee_ori", 3), ("ee_states", 6), ("gripper_states", 2), ("joint_states", 7)):
                demo[f"obs/{name}"] = rng.normal(size=(12, width))
            demo["obs/agentview_rgb"] = np.repeat(np.arange(12, dtype=np.uint8), 8 * 8 * 3).reshape(12, 8, 8, 3)
            demo.attrs["num_samples"] = 12
        if change is not None:
            change(file)
    return path
