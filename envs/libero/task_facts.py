"""Measuring a task's static facts in the simulator."""

from typing import Any

import mujoco
import numpy as np

from sb3_tgrpo.envs.libero.geometry import box_of_geoms, geom_mask
from sb3_tgrpo.envs.libero.scene import CONTROL_FREQ, LiberoScene
from sb3_tgrpo.envs.libero.sim import LiberoSim
from sb3_tgrpo.envs.libero.tasks import LiberoTask
from sb3_tgrpo.rewards.facts import task_facts as facts
from sb3_tgrpo.rewards.facts.vocabulary import State

_DIGITS = 5
_GRIPPER_STEPS = 40


def _rounded(values: Any) -> Any:
    return tuple(round(float(value), _DIGITS) + 0.0 for value in values)


def _pose(state: State, name: str) -> tuple[Any, Any]:
    return _rounded(state[f"{name}_pos"]), _rounded(state[f"{name}_quat"])


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


def _thresholds(owner: Any) -> tuple[facts.JointThreshold, ...]:
    """What LIBERO's predicates ask of an articulated object's joints."""
    ranges = owner.object_properties["articulation"]
    found: list[facts.JointThreshold] = []
    for predicate, method in (("open", "is_open"), ("close", "is_close"), ("turnon", "turn_on"), ("turnoff", "turn_off")):
        bounds = ranges.get(f"default_{predicate}_ranges")
        if not bounds or not hasattr(owner, method):
            continue
        above = getattr(owner, method)(np.inf)
        found.append(facts.JointThreshold(predicate, "above" if above else "below", float((min if above else max)(bounds))))
    return tuple(found)


def _gripper_range(sim: LiberoSim) -> tuple[float, float]:
    """Finger distance after closing on nothing, and after opening."""
    openings = []
    for command in (1.0, -1.0):
        for _ in range(_GRIPPER_STEPS):
            sim.step(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, command]), {})
        openings.append(round(float(sim.facts()["gripper_opening"]), 4) + 0.0)  # type: ignore[arg-type]
    return openings[0], openings[1]


def measure_task_facts(task: LiberoTask, sim: LiberoSim) -> facts.TaskFacts:
    """Facts about a task at an initial state."""
    scene, state, entities, problem = sim.scene, sim.facts(), sim.facts_reader.entities, sim.scene.problem
    goal = tuple(
        facts.GoalAtom(atom[0].lower(), tuple(atom[1:]), true)
        for atom, true in zip(sim.goal.atoms, sim.goal_atoms(), strict=True)
    )
    words = problem.parsed_problem["language_instruction"]
    return facts.TaskFacts(
        suite=task.suite,
        index=task.index,
        name=task.name,
        instruction=task.instruction,
        bddl_instruction=words if isinstance(words, str) else " ".join(words),
        goal=goal,
        objects=tuple(_object_facts(scene, name, state) for name in entities.objects),
        sites=tuple(_site_facts(scene, name, state) for name in entities.sites),
        fixtures=tuple(
            facts.FixtureFacts(name, problem.fixtures_dict[name].category_name, *_pose(state, name))
            for name in entities.fixtures
        ),
        joints=tuple(_joint_facts(scene, handle.joint, handle.fixture, state) for handle in entities.handles),
        handles=tuple(
            facts.HandleFacts(handle.name, handle.fixture, handle.joint, _rounded(state[f"{handle.name}_pos"]))
            for handle in entities.handles
        ),
        support_z=round(_support_z(scene), 3) + 0.0,
        eef_start_pos=_rounded(state["eef_pos"]),
        eef_start_quat=_rounded(state["eef_quat"]),
        gripper_range=_gripper_range(sim),
        horizon=task.step_cap,
        control_freq=CONTROL_FREQ,
    )


def _object_facts(scene: LiberoScene, name: str, state: State) -> facts.ObjectFacts:
    """The box is that of the object's collision geoms in its own frame, relative to its origin."""
    thing, body = scene.problem.objects_dict[name], scene.problem.obj_body_id[name]
    geoms = np.flatnonzero(geom_mask(scene.model, thing.contact_geoms))
    low, high = box_of_geoms(scene.model, scene.data, geoms.tolist(), body)
    return facts.ObjectFacts(name, thing.category_name, _rounded(low), _rounded(high), *_pose(state, name))


def _site_facts(scene: LiberoScene, name: str, state: State) -> facts.SiteFacts:
    site = scene.problem.object_sites_dict[name]
    joint = next(iter(site.joints or []), "")
    return facts.SiteFacts(name, _rounded(site.size), *_pose(state, name), site.parent_name or "", joint)


def _joint_facts(scene: LiberoScene, joint: str, fixture: str, state: State) -> facts.JointFacts:
    model = scene.model
    joint_id = model.joint(joint).id
    hinge = model.jnt_type[joint_id] == mujoco.mjtJoint.mjJNT_HINGE
    return facts.JointFacts(
        name=joint,
        fixture=fixture,
        type="hinge" if hinge else "slide",
        range=_rounded(model.jnt_range[joint_id]),
        start=_rounded([state[f"{joint}_qpos"]])[0],
        thresholds=_thresholds(scene.problem.get_object(fixture)),
    )
