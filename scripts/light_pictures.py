"""
The pictures of ``docs/light_assets.md``: each task drawn with full and with light assets, side by side.

``python scripts/light_pictures.py --suite libero_object --output docs/images`` (needs full assets).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sb3_tgrpo.envs.libero.assets import resolve_assets
from sb3_tgrpo.envs.libero.render import OffscreenRenderer
from sb3_tgrpo.envs.libero.scene import LiberoScene
from sb3_tgrpo.envs.libero.tasks import LiberoTask, get_task
from sb3_tgrpo.envs.registration import SUITES

_CAPTION_HEIGHT = 14


def draw(task: LiberoTask, kind: str, size: int, camera: str = "agentview") -> np.ndarray:
    """
    :param task: The task.
    :param kind: ``"full"`` or ``"light"``.
    :param size: Height and width in pixels.
    :param camera: Name of the camera.
    :return: Its start with seed 0, uint8 of shape (size, size, 3), upright.
    """
    scene = LiberoScene(task, resolve_assets(kind))
    scene.reset(0)
    renderer = OffscreenRenderer(scene.model, scene.data, size, size)
    try:
        return renderer.render(scene.model.camera(camera).id)[::-1]
    finally:
        renderer.close()


def pair(task: LiberoTask, size: int) -> np.ndarray:
    """
    :return: Full and light side by side under the task's sentence, uint8 of shape (size + 14, 2 * size, 3).
    """
    from PIL import Image, ImageDraw

    caption = Image.new("RGB", (2 * size, _CAPTION_HEIGHT), "white")
    ImageDraw.Draw(caption).text((3, 1), f"{task.index}: {task.instruction}"[: size // 3], fill="black")
    pictures = [draw(task, kind, size) for kind in ("full", "light")]
    return np.concatenate([np.asarray(caption), np.concatenate(pictures, axis=1)])


def sheet(tiles: Sequence[np.ndarray], columns: int = 2) -> np.ndarray:
    """
    :return: The tiles in rows of ``columns``.
    """
    blank = np.full_like(tiles[0], 255)
    padded = [*tiles, *[blank] * (-len(tiles) % columns)]
    rows = [np.concatenate(padded[i : i + columns], axis=1) for i in range(0, len(padded), columns)]
    return np.concatenate(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``light_<suite>.png`` for a suite."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--suite", choices=list(SUITES), default="libero_object")
    parser.add_argument("--tasks", type=int, nargs="*", help="default: all tasks of the suite")
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--size", type=int, default=224, help="pixels per picture")
    options = parser.parse_args(arguments)
    from PIL import Image

    tasks = range(SUITES[options.suite]) if options.tasks is None else options.tasks
    picture = sheet([pair(get_task(options.suite, task), options.size) for task in tasks])
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"light_{options.suite}.png"
    Image.fromarray(picture).save(file, optimize=True)
    print(file)


if __name__ == "__main__":
    main()
