"""Hand-written facts, states and a spec for reward tests: one bottle, a basket, a drawer."""

import copy
from typing import Any

from sb3_tgrpo.rewards.facts.task_facts import (
    FixtureFacts,
    GoalAtom,
    HandleFacts,
    JointFacts,
    JointThreshold,
    ObjectFacts,
    SiteFacts,
    TaskFacts,
    nominal_state,
)
from sb3_tgrpo.rewards.facts.vocabulary import State, StateValue

UPRIGHT = (0.0, 0.0, 0.0, 1.0)


def make_facts(goal: tuple[GoalAtom, ...] = (GoalAtom("in", ("ketchup_1", "basket_1_contain_region")),)) -> TaskFacts:
    """A bottle and a carton beside a basket, and a cabinet with one drawer."""
    return TaskFacts(
        suite="libero_object",
        index=4,
        name="pick_up_the_ketchup_and_place_it_in_the_basket",
        instruction="pick up the ketchup and place it in the basket",
        bddl_instruction="Pick the ketchup and place it in the basket",
        goal=goal,
        objects=(
            ObjectFacts("ketchup_1", "ketchup", (-0.018, -0.028, -0.072), (0.019, 0.029, 0.073), (0.05, -0.1, 0.07), UPRIGHT),
            ObjectFacts("milk_1", "milk", (-0.026, -0.027, -0.07), (0.026, 0.027, 0.061), (0.15, -0.2, 0.07), UPRIGHT),
            ObjectFacts("basket_1", "basket", (-0.07, -0.07, 0.0), (0.07, 0.07, 0.14), (0.0, 0.26, 0.0), UPRIGHT),
        ),
        sites=(
            SiteFacts("basket_1_contain_region", (0.06, 0.06, 0.07), (0.0, 0.26, 0.067), UPRIGHT, "basket_1"),
            SiteFacts(
                "cabinet_1_top_region", (0.1, 0.08, 0.03), (0.0, -0.3, 0.2), UPRIGHT, "cabinet_1", "cabinet_1_top_level"
            ),
        ),
        fixtures=(FixtureFacts("cabinet_1", "wooden_cabinet", (0.0, -0.3, 0.0), UPRIGHT),),
        joints=(
            JointFacts(
                "cabinet_1_top_level", "cabinet_1", "slide", (-0.16, 0.01), 0.0, (JointThreshold("open", "below", -0.14),)
            ),
        ),
        handles=(HandleFacts("cabinet_1_top_handle", "cabinet_1", "cabinet_1_top_level", (0.0, -0.2, 0.2)),),
        support_z=0.0,
        eef_start_pos=(-0.2, 0.0, 0.26),
        eef_start_quat=(1.0, 0.0, 0.0, 0.0),
        gripper_range=(0.0, 0.077),
        horizon=280,
    )


def compare(variable: dict[str, Any], op: str, value: float) -> dict[str, Any]:
    """A comparison condition."""
    return {"kind": "compare", "variable": variable, "op": op, "value": value}


def distance(a: str, b: str, metric: str = "xyz") -> dict[str, Any]:
    """A distance variable."""
    return {"kind": "distance", "a": a, "b": b, "metric": metric}


GRASPED = {"kind": "grasped", "object": "ketchup_1"}
RISE = {"kind": "rise", "object": "ketchup_1"}


def make_spec() -> dict[str, Any]:
    """Approach, grasp, lift, place; 4 points, 0.2 of them for the pose, and 5 for success."""
    stages = [
        {
            "name": "approach",
            "points": 1.0,
            "requires": [],
            "ladder": {
                "variable": distance("eef", "grasp"),
                "op": "below",
                "rungs": [{"threshold": 0.15, "value": 0.2}, {"threshold": 0.08, "value": 0.5}],
            },
            "pose": {"key_pose": "grasp", "reach": 0.2, "weight": 0.2},
            "done": [compare(distance("eef", "grasp"), "below", 0.03)],
            "hold_steps": 1,
        },
        {
            "name": "grasp",
            "points": 1.0,
            "requires": [compare(distance("eef", "grasp"), "below", 0.08)],
            "ladder": None,
            "pose": None,
            "done": [GRASPED],
            "hold_steps": 3,
        },
        {
            "name": "lift",
            "points": 1.0,
            "requires": [GRASPED],
            "ladder": {"variable": RISE, "op": "above", "rungs": [{"threshold": 0.05, "value": 0.4}]},
            "pose": None,
            "done": [compare(RISE, "above", 0.1)],
            "hold_steps": 1,
        },
        {
            "name": "place",
            "points": 1.0,
            "requires": [GRASPED],
            "ladder": {
                "variable": distance("ketchup_1", "basket_1_contain_region", "xy"),
                "op": "below",
                "rungs": [{"threshold": 0.2, "value": 0.3}, {"threshold": 0.05, "value": 0.6}],
            },
            "pose": None,
            "done": [{"kind": "goal", "index": 0}],
            "hold_steps": 1,
        },
    ]
    document = {
        "schema_version": 1,
        "task": "libero_object-4",
        "summary": "Put the ketchup into the basket.",
        "key_poses": [{"name": "grasp", "frame": "ketchup_1", "axes": "world", "offset": {"x": 0.0, "y": 0.0, "z": 0.02}}],
        "tracks": [{"name": "ketchup", "goal": [0], "after": [], "stages": stages}],
        "guards": [],
        "success_points": 5.0,
    }
    return copy.deepcopy(document)


def make_state(facts: TaskFacts, **changes: StateValue) -> State:
    """The nominal start with some values changed."""
    state = nominal_state(facts)
    unknown = set(changes) - set(state)
    assert not unknown, f"no such keys: {unknown}"
    state.update(changes)
    return state
