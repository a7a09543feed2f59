"""Light assets: LIBERO's physics, drawn with primitives."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

from sb3_tgrpo.envs import LiberoEnv
from sb3_tgrpo.envs.libero.assets import resolve_assets
from sb3_tgrpo.envs.libero.light_assets import lighten_model, require_light
from sb3_tgrpo.envs.libero.light_mjcf import expand, load_table, object_mjcf
from sb3_tgrpo.envs.libero.render import OffscreenRenderer
from sb3_tgrpo.envs.libero.scene import LiberoScene
from sb3_tgrpo.envs.libero.tasks import get_task
from sb3_tgrpo.envs.registration import SUITES

TASKS = [("libero_object", task) for task in range(10)]
# together with TASKS: every scene, and every object of libero_spatial, libero_goal and libero_10
OTHERS = [("libero_spatial", 0), ("libero_goal", 0), *[("libero_10", task) for task in (0, 2, 3, 4, 5, 9)]]
REST = [(suite, task) for suite, n in SUITES.items() for task in range(n) if (suite, task) not in {*TASKS, *OTHERS}]
ALL = [*TASKS, *OTHERS, *[pytest.param(*task, marks=pytest.mark.slow) for task in REST]]
PRODUCTS = sorted(set(load_table("stable_hope_objects")) - {"defaults", "cookies", "new_salad_dressing"})
COUNTS = {
    "BODY": "nbody",
    "JOINT": "njnt",
    "SITE": "nsite",
    "CAMERA": "ncam",
    "LIGHT": "nlight",
    "ACTUATOR": "nu",
    "SENSOR": "nsensor",
}


def scene(kind: str, suite: str, task: int) -> LiberoScene:
    return LiberoScene(get_task(suite, task), resolve_assets(kind))


@lru_cache(maxsize=10)
def light_scene(suite: str, task: int) -> LiberoScene:
    return scene("light", suite, task)


def drawn_types(model: mujoco.MjModel, data: mujoco.MjData) -> set[int]:
    option = mujoco.MjvOption()
    option.geomgroup[:] = [0, 1, 0, 0, 0, 0]
    drawn = mujoco.MjvScene(model, maxgeom=2000)
    mujoco.mjv_updateScene(model, data, option, mujoco.MjvPerturb(), mujoco.MjvCamera(), mujoco.mjtCatBit.mjCAT_ALL, drawn)
    return {drawn.geoms[i].type for i in range(drawn.ngeom)}


def physical_geoms(model: mujoco.MjModel) -> list[int]:
    return [i for i in range(model.ngeom) if model.geom_contype[i] or model.geom_conaffinity[i] or model.geom_group[i] == 0]


def names(model: mujoco.MjModel, kind: mujoco.mjtObj, ids: Any) -> list[str]:
    return [mujoco.mj_id2name(model, kind, i) for i in ids]


def assert_same_model(light: mujoco.MjModel, full: mujoco.MjModel) -> None:
    """Everything but what is drawn is equal, to the last bit."""
    for kind, count in COUNTS.items():
        obj = getattr(mujoco.mjtObj, f"mjOBJ_{kind}")
        assert getattr(light, count) == getattr(full, count), kind
        assert names(light, obj, range(getattr(light, count))) == names(full, obj, range(getattr(full, count)))
    drawn_only = {"body_geomadr", "body_geomnum", "body_bvhadr", "body_bvhnum"}
    prefixes = ("body", "jnt", "dof", "site", "actuator", "cam", "light", "sensor", "eq", "qpos0", "exclude", "pair")
    compared = 0
    for field in dir(full):
        value = getattr(full, field)
        if field.split("_")[0] in prefixes and isinstance(value, np.ndarray) and field not in drawn_only:
            np.testing.assert_array_equal(getattr(light, field), value, err_msg=field)
            compared += 1
    assert compared > 100
    ours, theirs = physical_geoms(light), physical_geoms(full)
    assert names(light, mujoco.mjtObj.mjOBJ_GEOM, ours) == names(full, mujoco.mjtObj.mjOBJ_GEOM, theirs)
    for field in dir(full):
        if field.startswith("geom_") and field not in {"geom_rgba", "geom_matid", "geom_dataid"}:
            np.testing.assert_array_equal(getattr(light, field)[ours], getattr(full, field)[theirs], err_msg=field)
    for field in ("meaninertia", "meanmass"):
        np.testing.assert_array_equal(getattr(light.stat, field), getattr(full.stat, field), err_msg=field)
    assert repr(light.opt) == repr(full.opt)


@pytest.mark.full_assets
@pytest.mark.parametrize(("suite", "task"), ALL)
def test_model_and_bare_physics_equal_full_assets(suite: str, task: int) -> None:
    light, full = light_scene(suite, task), scene("full", suite, task)
    assert_same_model(light.model, full.model)
    full.reset(3)
    light.reset(3)
    for field in ("qpos", "xpos", "xquat", "site_xpos"):
        np.testing.assert_array_equal(getattr(light.data, field), getattr(full.data, field), err_msg=field)
    rng = np.random.default_rng(0)
    contacts = 0
    for step in range(1000):
        if step % 25 == 0:
            torque = rng.uniform(-1, 1, full.model.nu) * [60, 60, 40, 40, 10, 10, 10, 0.04, 0.04]
        full.data.ctrl[:] = light.data.ctrl[:] = torque
        mujoco.mj_step(full.model, full.data)
        mujoco.mj_step(light.model, light.data)
        contacts = max(contacts, full.data.ncon)
    np.testing.assert_array_equal(light.data.qpos, full.data.qpos)
    np.testing.assert_array_equal(light.data.qvel, full.data.qvel)
    assert contacts > 10


@pytest.mark.full_assets
@pytest.mark.parametrize(("suite", "task"), [TASKS[0], TASKS[7], ("libero_goal", 7)])
def test_same_trajectory_under_random_actions(suite: str, task: int) -> None:
    envs = [LiberoEnv(suite, task, assets=kind, observations=("state",)) for kind in ("light", "full")]
    light, full = envs
    for env in envs:
        env.reset(seed=1, options={"init_state_id": 5})
    start = full.unwrapped.data.qpos.copy()
    rng = np.random.default_rng(0)
    for _ in range(200):
        action = rng.uniform(-1, 1, 7).astype(np.float32)
        action[2] = min(action[2], 0.2)  # downwards, into the objects
        results = [env.step(action)[1:4] for env in envs]
        assert results[0] == results[1]
        np.testing.assert_array_equal(light.unwrapped.data.qpos, full.unwrapped.data.qpos)
        np.testing.assert_array_equal(light.unwrapped.data.qvel, full.unwrapped.data.qvel)
    assert np.abs(full.unwrapped.data.qpos - start).max() > 0.1
    for env in envs:
        env.close()


@pytest.mark.parametrize(("suite", "task"), ALL)
def test_light_task_loads_and_draws_no_mesh(suite: str, task: int) -> None:
    light = light_scene(suite, task)
    light.reset(0)
    assert np.isfinite(light.data.qpos).all()
    types = drawn_types(light.model, light.data)
    assert mujoco.mjtGeom.mjGEOM_MESH not in types
    assert types >= {mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER}
    # robosuite looks its visual geoms up by name
    for name in light.robot.robot_model.visual_geoms + light.robot.gripper.visual_geoms:
        assert mujoco.mj_name2id(light.model, mujoco.mjtObj.mjOBJ_GEOM, name) >= 0


def product_palettes() -> dict[str, np.ndarray]:
    """What share of each product's pixels falls into each of 64 colours, in one 128x128 agentview picture of its own task."""
    palettes: dict[str, np.ndarray] = {}
    for suite, task in TASKS:
        light = light_scene(suite, task)
        light.reset(0)
        model = light.model
        product = light.task.name.removeprefix("pick_up_the_").removesuffix("_and_place_it_in_the_basket")
        camera = model.camera("agentview").id
        renderer = OffscreenRenderer(model, light.data, 128, 128)
        shown = renderer.render(camera)
        mine = (model.geom_bodyid == model.body(f"{product}_1_main").id) & (model.geom_group == 1)
        model.geom_rgba[mine, 3] = 0
        hidden = renderer.render(camera)
        renderer.close()
        model.geom_rgba[mine, 3] = 1
        pixels = shown[np.abs(shown.astype(int) - hidden).sum(-1) > 30]
        assert len(pixels) >= 20, product
        palettes[product] = np.bincount((pixels // 64) @ [16, 4, 1], minlength=64) / len(pixels)
    return palettes


def test_products_can_be_told_apart_in_a_small_picture() -> None:
    palettes = product_palettes()
    assert sorted(palettes) == PRODUCTS
    assert len(PRODUCTS) == 10
    for one, other in combinations(PRODUCTS, 2):
        different = np.abs(palettes[one] - palettes[other]).sum() / 2  # share of pixels that would have to change colour
        assert different > 0.25, (one, other, different)


PICTURE = """
import hashlib
from sb3_tgrpo.envs.libero.assets import resolve_assets
from sb3_tgrpo.envs.libero.render import OffscreenRenderer
from sb3_tgrpo.envs.libero.scene import LiberoScene
from sb3_tgrpo.envs.libero.tasks import get_task
scene = LiberoScene(get_task("libero_object", 4), resolve_assets("light"))
scene.reset(7)
picture = OffscreenRenderer(scene.model, scene.data, 128, 128).render(scene.model.camera("agentview").id)
print("picture", hashlib.sha256(picture.tobytes()).hexdigest(), picture.std() > 20)
"""


def test_pictures_are_the_same_in_every_process() -> None:
    light = light_scene("libero_object", 4)
    light.reset(7)
    renderer = OffscreenRenderer(light.model, light.data, 128, 128)
    here = hashlib.sha256(renderer.render(light.model.camera("agentview").id).tobytes()).hexdigest()
    renderer.close()
    done = subprocess.run([sys.executable, "-c", PICTURE], capture_output=True, text=True, check=True)
    assert f"picture {here} True" in done.stdout


def test_objects_without_a_light_version_are_named(tmp_path: Path) -> None:
    task = get_task("libero_object", 0)
    text = task.bddl_file.read_text()
    own = tmp_path / "own.bddl"
    own.write_text(text.replace("- milk", "- bowl_drainer").replace("- butter", "- macaroni_and_cheese"))
    message = 'no light version of bowl_drainer, macaroni_and_cheese.*assets="full".*add rows'
    with pytest.raises(ValueError, match=message):
        require_light(own)
    with pytest.raises(ValueError, match=message):
        LiberoScene(replace(task, bddl_file=own), resolve_assets("light"))


def test_rings_and_unknown_keys() -> None:
    post = {"type": "box", "pos": [0.1, 0, 0.2], "size": [0.01, 0.02, 0.03], "rgba": "ff0000"}
    ring = list(expand([{**post, "ring": 4, "about": [0.05, 0]}]))
    assert [row["pos"] for row in ring] == [[0.1, 0, 0.2], [0.05, 0.05, 0.2], [0, 0, 0.2], [0.05, -0.05, 0.2]]
    assert ring[1]["quat"] == pytest.approx([0.5**0.5, 0, 0, 0.5**0.5], abs=1e-6)
    assert list(expand([post])) == [post]
    table = {"bounds": {"bottom": [0, 0, 0], "top": [0, 0, 0], "radius": [0, 0, 0]}, "colision": []}
    with pytest.raises(ValueError, match=r"unknown key.*colision.*cup"):
        object_mjcf("cup", table, {})


def test_visual_meshes_of_unknown_bodies_are_refused() -> None:
    geom = '<geom type="mesh" mesh="x" group="1" contype="0" conaffinity="0"/>'
    xml = f'<mujoco><worldbody><body name="robot0_tentacle">{geom}</body></worldbody></mujoco>'
    with pytest.raises(ValueError, match=r"'robot0_tentacle'.*link0.*assets=\"full\""):
        lighten_model(xml)


def test_lighten_model_keeps_everything_but_visual_meshes() -> None:
    xml = """<mujoco><asset><mesh name="seen" file="a.stl"/><mesh name="felt" file="b.stl"/><material name="paint"/></asset>
    <worldbody><body name="robot0_link1"><inertial pos="0 0 0" mass="3" diaginertia="1 1 1"/><joint name="j"/>
    <geom name="look" type="mesh" mesh="seen" material="paint" group="1" contype="0" conaffinity="0"/>
    <geom name="hit" type="mesh" mesh="felt" group="0"/><site name="s"/></body></worldbody></mujoco>"""
    light = lighten_model(xml)
    for kept in (
        'name="felt"',
        'name="hit" type="mesh" mesh="felt"',
        "<inertial",
        'joint name="j"',
        'site name="s"',
        'name="look"',
    ):
        assert kept in light
    for gone in ("seen", "paint"):
        assert gone not in light
