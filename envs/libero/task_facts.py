"""Measuring a task's static facts in the simulator."""

from typing import Any

import mujoco
import numpy as np

from sb3_tgrpo.envs.libero.geometry import box_of_geoms, geom_mask
from sb3_tgrpo.envs.libero.scene import CONTROL_FREQ, LiberoScene
from sb3_tgrpo.envs.libero.sim import LiberoSim
from sb3_tgrpo.envs.libero.tasks import LiberoTask
from sb3_tgrpo.rewards.facts.task_facts import (
    FixtureFacts,
    GoalAtom,
    HandleFacts,
    JointFacts,
    JointThreshold,
    ObjectFacts,
    Quat,
    SiteFacts,
    TaskFacts,
    Vec3,
)
from sb3_tgrpo.rewards.facts.vocabulary import State

_DIGITS = 5
_GRIPPER_STEPS = 40


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(value), _DIGITS) + 0.0 for value in values)


def _vec3(values: Any) -> Vec3:
    x, y, z = _rounded(values)
    return (x, y, z)


def _quat(values: Any) -> Quat:
    x, y, z, w = _rounded(values)
    return (x, y, z, w)


def object_aabb(scene: LiberoScene, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Box of an object's collision geoms in its own frame, relative to its origin: lower and upper corner, each (3,)."""
    model, data = scene.model, scene.data
    body = scene.problem.obj_body_id[name]
    geoms = np.flatnonzero(geom_mask(model, scene.problem.objects_dict[name].contact_geoms))
    return box_of_geoms(model, data, geoms.tolist(), body)


def _support_z(scene: LiberoScene) -> float:
    """Height at which movable objects touch the arena: everything that is neither robot, object nor fixture."""
    model, problem = scene.model, scene.problem
    roots = {name: model.body(thing.root_body).id for name, thing in {**problem.objects_dict, **problem.fixtures_dict}.items()}
    objects = {roots[name] for name in problem.objects_dict}
    robot = model.body(scene.robot.robot_model.root_body).id
    things = set(roots.values()) | {robot}

    def owner(geom: int) -> int:
        body = int(model.geom_bodyid[geom])
        while body and body not in things:
            body = int(model.body_parentid[body])
        return body

    heights = [
        contact.pos[2]
        for contact in scene.data.contact
        if {owner(contact.geom1), owner(contact.geom2)} & objects and 0 in (owner(contact.geom1), owner(contact.geom2))
    ]
    if not heights:
        raise RuntimeError(f"{scene.task.name}: no object stands on the table or floor at its first stored initial state.")
    return float(np.median(heights))


def _thresholds(owner: Any) -> tuple[JointThreshold, ...]:
    """What LIBERO's predicates ask of an articulated object's joints."""
    ranges = owner.object_properties["articulation"]
    found: list[JointThreshold] = []
    for predicate, method in (("open", "is_open"), ("close", "is_close"), ("turnon", "turn_on"), ("turnoff", "turn_off")):
        bounds = ranges.get(f"default_{predicate}_ranges")
        if not bounds or not hasattr(owner, method):
            continue
        if getattr(owner, method)(np.inf):
            found.append(JointThreshold(predicate, "above", float(min(bounds))))
        else:
            found.append(JointThreshold(predicate, "below", float(max(bounds))))
    return tuple(found)


def _gripper_range(sim: LiberoSim) -> tuple[float, float]:
    """Finger distance after closing on nothing, and after opening."""
    openings = []
    for command in (1.0, -1.0):
        for _ in range(_GRIPPER_STEPS):
            sim.step(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, command]), {})
        openings.append(round(float(sim.facts()["gripper_opening"]), 4) + 0.0)  # type: ignore[arg-type]
    return openings[0], openings[1]


def measure_task_facts(task: LiberoTask, sim: LiberoSim) -> TaskFacts:
    """Facts about a task at an initial state."""
    scene, state, entities, problem = sim.scene, sim.facts(), sim.facts_reader.entities, sim.scene.problem
    goal = tuple(
        GoalAtom(atom[0].lower(), tuple(atom[1:]), true) for atom, true in zip(sim.goal.atoms, sim.goal_atoms(), strict=True)
    )
    support_z = round(_support_z(scene), 3) + 0.0
    return TaskFacts(
        suite=task.suite,
        index=task.index,
        name=task.name,
        instruction=task.instruction,
        bddl_instruction=_bddl_instruction(problem),
        goal=goal,
        objects=tuple(_object_facts(scene, name, state) for name in entities.objects),
        sites=tuple(_site_facts(scene, name, state) for name in entities.sites),
        fixtures=tuple(
            FixtureFacts(
                name, problem.fixtures_dict[name].category_name, _vec3(state[f"{name}_pos"]), _quat(state[f"{name}_quat"])
            )
            for name in entities.fixtures
        ),
        joints=tuple(_joint_facts(scene, handle.joint, handle.fixture, state) for handle in entities.handles),
        handles=tuple(
            HandleFacts(handle.name, handle.fixture, handle.joint, _vec3(state[f"{handle.name}_pos"]))
            for handle in entities.handles
        ),
        support_z=support_z,
        eef_start_pos=_vec3(state["eef_pos"]),
        eef_start_quat=_quat(state["eef_quat"]),
        gripper_range=_gripper_range(sim),
        horizon=task.step_cap,
        control_freq=CONTROL_FREQ,
    )


def _bddl_instruction(problem: Any) -> str:
    words = problem.parsed_problem["language_instruction"]
    return words if isinstance(words, str) else " ".join(words)


def _object_facts(scene: LiberoScene, name: str, state: State) -> ObjectFacts:
    low, high = object_aabb(scene, name)
    kind = scene.problem.objects_dict[name].category_name
    return ObjectFacts(name, kind, _vec3(low), _vec3(high), _vec3(state[f"{name}_pos"]), _quat(state[f"{name}_quat"]))


def _site_facts(scene: LiberoScene, name: str, state: State) -> SiteFacts:
    site = scene.problem.object_sites_dict[name]
    return SiteFacts(
        name=name,
        half_size=_vec3(site.size),
        start_pos=_vec3(state[f"{name}_pos"]),
        start_quat=_quat(state[f"{name}_quat"]),
        parent=site.parent_name or "",
        joint=next(iter(site.joints or []), ""),
    )


def _joint_facts(scene: LiberoScene, joint: str, fixture: str, state: State) -> JointFacts:
    model = scene.model
    joint_id = model.joint(joint).id
    low, high = _rounded(model.jnt_range[joint_id])
    hinge = model.jnt_type[joint_id] == mujoco.mjtJoint.mjJNT_HINGE
    return JointFacts(
        name=joint,
        fixture=fixture,
        type="hinge" if hinge else "slide",
        range=(low, high),
        start=_rounded([state[f"{joint}_qpos"]])[0],
        thresholds=_thresholds(scene.problem.get_object(fixture)),
    )
