"""
What a picture costs with full and with light assets: ``python scripts/light_speed.py`` (needs full assets).

Both sides draw the same states of the same tasks in turns, so that a busy machine slows both.
"""

import argparse
import time
from collections.abc import Sequence

import mujoco
import numpy as np

from sb3_tgrpo.envs.libero.assets import resolve_assets
from sb3_tgrpo.envs.libero.render import OffscreenRenderer
from sb3_tgrpo.envs.libero.scene import LiberoScene
from sb3_tgrpo.envs.libero.tasks import get_task
from sb3_tgrpo.rewards.facts.task_name import TaskName


def drawn_faces(model: mujoco.MjModel) -> int:
    """
    :return: Triangles of the visible meshes.
    """
    seen = (model.geom_type == mujoco.mjtGeom.mjGEOM_MESH) & (model.geom_group == 1)
    return int(model.mesh_facenum[model.geom_dataid[seen]].sum())


def milliseconds(scenes: Sequence[LiberoScene], size: int, offsamples: int, pictures: int) -> list[float]:
    """
    :param scenes: Scenes, drawn in turns.
    :param size: Height and width in pixels.
    :param offsamples: MuJoCo's samples per pixel; LIBERO's models have 4.
    :param pictures: Pictures per scene.
    :return: Median time of an agentview picture, by scene.
    """
    renderers = []
    for scene in scenes:
        scene.model.vis.quality.offsamples = offsamples
        renderers.append(OffscreenRenderer(scene.model, scene.data, size, size))
    times = np.zeros((pictures + 2, len(scenes)))
    for row in times:
        for column, (scene, renderer) in enumerate(zip(scenes, renderers, strict=True)):
            start = time.perf_counter()
            renderer.render(scene.model.camera("agentview").id)
            row[column] = time.perf_counter() - start
    for renderer in renderers:
        renderer.close()
    return [float(value) for value in 1000 * np.median(times[2:], axis=0)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["libero_object-0", "libero_goal-0"], metavar="SUITE-TASK")
    parser.add_argument("--pictures", type=int, default=20)
    options = parser.parse_args(arguments)
    for name in options.tasks:
        scenes = [LiberoScene(get_task(*TaskName.parse(name)), resolve_assets(kind)) for kind in ("full", "light")]
        for scene in scenes:
            scene.reset(0)
        print(f"{name}: mesh faces drawn {drawn_faces(scenes[0].model)} full, {drawn_faces(scenes[1].model)} light")
        for offsamples in (4, 0):
            for size in (64, 128, 256):
                full, light = milliseconds(scenes, size, offsamples, options.pictures)
                print(f"  {size:3} px, {offsamples} samples: full {full:5.1f} ms, light {light:5.1f} ms, {full / light:4.1f}x")


if __name__ == "__main__":
    main()
