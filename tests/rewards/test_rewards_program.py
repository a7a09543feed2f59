"""Reward programs: levels and payments by hand-computed numbers, errors, purity, Python text."""

import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from rewards_fixtures import GRASPED, compare, distance, make_facts, make_spec, make_state

from sb3_tgrpo.rewards import RewardError, RewardProgram, RewardSpec
from sb3_tgrpo.rewards.facts.helpers import FUNCTIONS, HELPERS
from sb3_tgrpo.rewards.facts.task_facts import GoalAtom, TaskFacts
from sb3_tgrpo.rewards.facts.vocabulary import State
from sb3_tgrpo.rewards.program.compile import SpecCompiler
from sb3_tgrpo.rewards.program.program import Payment, RewardStep
from sb3_tgrpo.rewards.program.spec import DEBOUNCE_STEPS, MAX_BYTES, Outside

FACTS = make_facts()
GRASP = (0.05, -0.1, 0.09)  # the ketchup's start (0.05, -0.1, 0.07) and the key pose's 2 cm above it


def at(x: float = 0.05, y: float = -0.1, z: float = 0.09, **changes: Any) -> State:
    """The start with the gripper somewhere else; the default is the grasp pose."""
    return make_state(FACTS, eef_pos=(x, y, z), **changes)


def carry(x: float, y: float, z: float, **changes: Any) -> State:
    """The gripper holds the ketchup, whose origin is at (x, y, z)."""
    return at(x, y, z + 0.02, ketchup_1_pos=(x, y, z), ketchup_1_grasped=True, **changes)


def play(program: RewardProgram, states: list[State]) -> list[RewardStep]:
    """Steps for states[1:], counted from states[0]."""
    memory = program.reset(states[0])
    steps = []
    for t, state in enumerate(states[1:], start=1):
        step, memory = program(state, {"step": t}, memory)
        steps.append(step)
    return steps


EPISODE = [
    make_state(FACTS),
    at(z=0.25),  # 16 cm over the grasp pose, short of the first rung: pose 0.2 * (1 - 0.16 / 0.2) = 0.04
    at(z=0.19),  # 10 cm: rung 0.2 + pose 0.1
    at(z=0.11),  # 2 cm: done, so stage grasp with 1.0
    at(ketchup_1_grasped=True),
    at(ketchup_1_grasped=True),
    at(ketchup_1_grasped=True),  # third step in a row: stage lift with 2.0
    carry(0.05, -0.1, 0.13),  # 6 cm up: rung 0.4
    carry(0.05, -0.1, 0.18),  # 11 cm up: stage place with 3.0, 36 cm from the basket
    carry(0.0, 0.10, 0.18),  # 16 cm: rung 0.3
    carry(0.0, 0.24, 0.18),  # 2 cm: rung 0.6
    carry(0.0, 0.26, 0.06, goal_0=True, success=True),
]
LEVELS = [0.04, 0.3, 1.0, 1.0, 1.0, 2.0, 2.4, 3.0, 3.3, 3.6, 4.0]
STAGES = [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4]


@pytest.mark.parametrize(
    ("payment", "rewards"),
    [
        ("per_step", [*LEVELS[:-1], 9.0]),
        ("latched", [0.04, 0.26, 0.7, 0.0, 0.0, 1.0, 0.4, 0.6, 0.3, 0.3, 5.4]),
        ("potential", [0.04, 0.26, 0.7, 0.0, 0.0, 1.0, 0.4, 0.6, 0.3, 0.3, 5.4]),
    ],
)
def test_a_successful_episode_pays_what_was_computed_by_hand(payment: Payment, rewards: list[float]) -> None:
    steps = play(RewardProgram.from_spec(make_spec(), facts=FACTS, payment=payment), EPISODE)
    np.testing.assert_allclose([step.reward for step in steps], rewards, atol=1e-12)
    np.testing.assert_allclose([step.terms["level"] for step in steps], LEVELS, atol=1e-12)
    np.testing.assert_allclose([step.progress for step in steps], np.array(LEVELS) / 4.0, atol=1e-12)
    assert [step.stage for step in steps] == STAGES
    assert {step.n_stages for step in steps} == {4}
    signal = rewards if payment == "per_step" else np.array(LEVELS) / 4.0
    np.testing.assert_allclose([step.signal for step in steps], signal, atol=1e-12)
    np.testing.assert_allclose([step.terms["pose_shaping"] for step in steps], [0.04, 0.1] + [0.0] * 9, atol=1e-12)


def test_losing_progress_is_free_when_latched_and_paid_back_as_a_potential() -> None:
    states = [make_state(FACTS), at(z=0.19), make_state(FACTS), at(z=0.19), make_state(FACTS)]
    program = RewardProgram.from_spec(make_spec(), facts=FACTS)
    np.testing.assert_allclose([s.reward for s in play(program, states)], [0.3, 0, 0, 0], atol=1e-12)
    potential = play(program.with_payment("potential"), states)
    np.testing.assert_allclose([s.reward for s in potential], [0.3, -0.3, 0.3, -0.3], atol=1e-12)
    per_step = play(program.with_payment("per_step"), states)
    np.testing.assert_allclose([s.reward for s in per_step], [0.3, 0, 0.3, 0], atol=1e-12)


def test_success_is_paid_once() -> None:
    steps = play(RewardProgram.from_spec(make_spec(), facts=FACTS), [*EPISODE, EPISODE[-1], EPISODE[-2], EPISODE[-1]])
    assert [step.terms["success_bonus"] for step in steps][-4:] == [5.0, 0.0, 0.0, 0.0]
    assert sum(step.reward for step in steps) == pytest.approx(9.0)


def test_reset_counts_progress_from_the_state_it_is_given() -> None:
    program = RewardProgram.from_spec(make_spec(), facts=FACTS)
    memory = program.reset(at(z=0.19))
    assert program(at(z=0.19), {"step": 1}, memory)[0].reward == 0.0
    step, memory = program(at(z=0.19), {"step": 1}, program.reset())
    assert step.reward == 0.0, "without a reset state the first step sets the mark"
    assert program(at(z=0.14), {"step": 2}, memory)[0].reward == pytest.approx(0.35)


def test_a_grasp_counts_after_three_steps_and_survives_two_without_contact() -> None:
    program = RewardProgram.from_spec(make_spec(), facts=FACTS)
    held = at(ketchup_1_grasped=True)
    touch = [make_state(FACTS), at(), held, held, at(), held, held, at()]
    assert max(step.stage for step in play(program, touch)) == 1, "two steps of contact are not a grasp"
    grasp = [make_state(FACTS), at(), held, held, held]
    lifted = carry(0.05, -0.1, 0.18)
    dropout = {**lifted, "ketchup_1_grasped": False}
    steps = play(program, [*grasp, lifted, dropout, dropout, lifted])
    assert [step.stage for step in steps[4:]] == [3, 3, 3, 3]
    steps = play(program, [*grasp, lifted, *[dropout] * DEBOUNCE_STEPS])
    assert steps[-1].stage == 1, "it falls back to the last stage whose requirements hold"
    away = {**dropout, "eef_pos": (0.0, 0.2, 0.3)}
    assert play(program, [*grasp, lifted, *[away] * DEBOUNCE_STEPS])[-1].stage == 0


def test_the_goal_completes_a_track_whatever_the_stage() -> None:
    program = RewardProgram.from_spec(make_spec(), facts=FACTS)
    step = play(program, [make_state(FACTS), make_state(FACTS, goal_0=True, success=True)])[0]
    assert (step.stage, step.progress, step.reward) == (4, 1.0, 9.0)


def two_tracks() -> tuple[TaskFacts, dict[str, Any]]:
    """Ketchup and milk into the basket, then close the drawer."""
    atoms = (
        GoalAtom("in", ("ketchup_1", "basket_1_contain_region")),
        GoalAtom("in", ("milk_1", "basket_1_contain_region")),
        GoalAtom("close", ("cabinet_1_top_region",)),
    )
    spec = make_spec()
    milk = json.loads(json.dumps(spec["tracks"][0]).replace("ketchup", "milk").replace('"grasp"', '"grasp_milk"'))
    milk["goal"], milk["stages"][-1]["done"][0]["index"] = [1], 1
    milk["stages"][1]["name"] = "grasp"
    spec["key_poses"].append({**spec["key_poses"][0], "name": "grasp_milk", "frame": "milk_1"})
    close = {
        "name": "drawer",
        "goal": [2],
        "after": ["ketchup", "milk"],
        "stages": [
            {
                "name": "push",
                "points": 1.0,
                "requires": [],
                "ladder": {
                    "variable": {"kind": "joint", "joint": "cabinet_1_top_level"},
                    "op": "above",
                    "rungs": [{"threshold": -0.1, "value": 0.5}],
                },
                "pose": None,
                "done": [{"kind": "goal", "index": 2}],
                "hold_steps": 1,
            }
        ],
    }
    spec["tracks"] += [milk, close]
    return make_facts(atoms), spec


def test_tracks_are_free_of_order_unless_told() -> None:
    facts, document = two_tracks()
    program = RewardProgram.from_spec(document, facts=facts)
    start = make_state(facts, cabinet_1_top_level_qpos=-0.15)
    one, other = {**start, "goal_0": True}, {**start, "goal_1": True}
    both = {**start, "goal_0": True, "goal_1": True}
    closed = {**both, "goal_2": True, "cabinet_1_top_level_qpos": 0.005, "success": True}
    first = [s.reward for s in play(program, [start, one, both, closed])]
    second = [s.reward for s in play(program, [start, other, both, closed])]
    assert first == second == [4.0, 4.0, 6.0]
    early = {**start, "goal_2": True, "cabinet_1_top_level_qpos": 0.005}
    assert play(program, [start, early])[0].reward == 0.0, "closing the drawer pays nothing before the tracks it follows"
    assert play(program, [start, both])[0].reward == 8.0


def test_a_guard_takes_points_off_while_it_is_broken() -> None:
    spec = make_spec()
    spec["guards"] = [
        {"name": "basket_upright", "keep": compare({"kind": "tilt", "entity": "basket_1"}, "below", 0.3), "points": 0.5}
    ]
    program = RewardProgram.from_spec(spec, facts=FACTS)
    tipped = at(z=0.19, basket_1_quat=(0.7071, 0.0, 0.0, 0.7071))
    steps = play(program, [make_state(FACTS), at(z=0.19), tipped, at(z=0.14)])
    np.testing.assert_allclose([step.terms["level"] for step in steps], [0.3, -0.2, 0.65])
    np.testing.assert_allclose([step.reward for step in steps], [0.3, 0.0, 0.35])
    assert steps[1].progress == 0.0


@pytest.mark.parametrize("payment", ["per_step", "latched", "potential"])
def test_programs_are_pure_picklable_and_deterministic(payment: Payment) -> None:
    program = RewardProgram.from_spec(make_spec(), facts=FACTS, payment=payment)
    states = copy.deepcopy(EPISODE)
    once, again = play(program, states), play(pickle.loads(pickle.dumps(program)), states)
    assert once == again
    assert states == EPISODE
    memory = program.reset(states[0])
    kept = copy.deepcopy(memory)
    program(states[2], {"step": 1}, memory)
    assert memory == kept
    assert all(abs(step.reward) <= program.bound for step in once)


def test_a_state_without_a_key_is_an_error_and_a_number_that_is_not_finite_pays_nothing() -> None:
    program = RewardProgram.from_spec(make_spec(), facts=FACTS)
    with pytest.raises(RewardError, match="ketchup_1_pos"):
        program({"success": False}, {}, program.reset())
    spec = make_spec()
    spec["tracks"][0]["stages"][0]["ladder"] = None
    memory = RewardProgram.from_spec(spec, facts=FACTS).reset(make_state(FACTS))
    python = RewardProgram.from_python(
        'def compute_reward(state, info):\n    max_level = 1.0\n    return 1.0 / state["gripper_opening"]\n', facts=FACTS
    )
    step, memory = python(make_state(FACTS, gripper_opening=0.0), {}, python.reset())
    assert (step.reward, step.terms["failures"]) == (0.0, 1.0)
    step, memory = python(make_state(FACTS, gripper_opening=0.01), {}, memory)  # 100 is past the declared bound
    assert (step.reward, step.terms["failures"]) == (0.0, 2.0)


# Python text


def named(track: str, pose: str) -> dict[str, Any]:
    """The specification with its own names chosen."""
    document = make_spec()
    text = json.dumps(document).replace('"grasp", "frame"', f'"{pose}", "frame"').replace('"b": "grasp"', f'"b": "{pose}"')
    document = json.loads(text.replace('"key_pose": "grasp"', f'"key_pose": "{pose}"'))
    document["tracks"][0]["name"] = track
    return document


def test_whatever_names_a_specification_may_have_its_text_may_have() -> None:
    for name in ("a", "a_1", "k2_3b", "a" * 52, "memory_stage"):
        spec = RewardProgram.from_spec(named(name, name), facts=FACTS)
        assert RewardProgram.from_python(spec.to_python(), facts=FACTS).max_level == spec.max_level
    for name in ("a__b", "a_", "_a", "a" * 53):
        with pytest.raises(RewardError, match=rf"tracks\[0\]\.name: String should .*\(got '{name}'\)"):
            RewardProgram.from_spec(named(name, "grasp"), facts=FACTS)
        with pytest.raises(RewardError, match=rf"key_poses\[0\]\.name: String should .*\(got '{name}'\)"):
            RewardProgram.from_spec(named("ketchup", name), facts=FACTS)


def test_the_printed_text_pays_the_same_bit_by_bit() -> None:
    facts, document = two_tracks()
    document["guards"] = [
        {"name": "upright", "keep": compare({"kind": "tilt", "entity": "basket_1"}, "below", 0.3), "points": 0.5}
    ]
    document["tracks"][0]["stages"][3]["requires"] = [
        {
            "kind": "any_of",
            "conditions": [GRASPED, {"kind": "released", "object": "ketchup_1"}, {"kind": "touched", "name": "milk_1"}],
        }
    ]
    document["tracks"][1]["stages"][3]["ladder"]["variable"] = {
        "kind": "outside", "point": "milk_1", "site": "basket_1_contain_region", "axes": "xy",
    }  # fmt: skip
    spec = RewardProgram.from_spec(document, facts=facts)
    text = RewardProgram.from_python(spec.to_python(), facts=facts)
    assert text.keys == spec.keys
    assert (text.n_stages, text.max_level) == (spec.n_stages, spec.max_level)
    assert RewardProgram.from_python(text.to_python(), facts=facts).source == text.source
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(60):
        states = random_walk(facts, rng)
        for payment in ("per_step", "latched", "potential"):
            a, b = play(spec.with_payment(payment), states), play(text.with_payment(payment), states)
            assert [s[:5] for s in a] == [s[:5] for s in b]
            seen |= {s.stage for s in a}
    assert len(seen) >= 7, "the walks visit most stages"


def random_walk(facts: TaskFacts, rng: np.random.Generator) -> list[State]:
    """Seventy states in which contacts, goals and positions change at random but linger."""
    state = make_state(facts)
    states = [state]
    for _ in range(70):
        state = dict(state)
        thing = ("ketchup_1", "milk_1")[int(rng.integers(2))]
        roll = rng.random()
        if roll < 0.3:
            x, y, z = state[f"{thing}_pos"]  # type: ignore[misc]
            state["eef_pos"] = (x, y, z + 0.02 + 0.1 * float(rng.random()) ** 3)
        elif roll < 0.5:
            state[f"{thing}_grasped"] = bool(rng.random() < 0.8)
        elif roll < 0.7:
            state[f"{thing}_pos"] = tuple(float(v) for v in rng.uniform((-0.1, -0.1, 0.0), (0.1, 0.3, 0.3)))
        elif roll < 0.75:
            state[f"goal_{int(rng.integers(3))}"] = bool(rng.random() < 0.6)
        elif roll < 0.8:
            state["basket_1_quat"] = (0.7071, 0.0, 0.0, 0.7071) if rng.random() < 0.3 else (0.0, 0.0, 0.0, 1.0)
        elif roll < 0.85:
            state["cabinet_1_top_level_qpos"] = float(rng.uniform(-0.16, 0.01))
        state["success"] = all(state[f"goal_{k}"] for k in range(3))
        states += [state] * int(rng.integers(1, 4))
    return states


def test_helpers_and_their_table_agree() -> None:
    assert set(FUNCTIONS) == set(HELPERS)
    samples = {"scalar": 0.25, "vec3": (0.1, 0.2, 0.3), "quat": (0.0, 0.0, 0.6, 0.8)}
    for name, helper in HELPERS.items():
        args = [samples[kind] for kind in helper.args] + ([0.5, 1.0] if helper.pairs else [])
        value = FUNCTIONS[name](*args)
        width = {"scalar": float, "vec3": tuple}[helper.returns]
        assert isinstance(value, width), name


def test_helpers_by_hand() -> None:
    f: dict[str, Any] = dict(FUNCTIONS)
    assert f["distance"]((0, 0, 0), (1.0, 2.0, 2.0)) == 3.0
    assert f["distance_xy"]((0, 0, 9.0), (3.0, 4.0, 0)) == 5.0
    assert f["ladder_below"](0.07, 0.2, 0.1, 0.08, 0.5, 0.02, 0.9) == 0.5
    assert f["ladder_above"](0.07, 0.02, 0.1, 0.05, 0.5, 0.1, 0.9) == 0.5
    assert f["closeness"](0.05, 0.2) == 0.75
    assert f["closeness"](0.05, 0.0) == 0.0
    quarter = (0.0, 0.0, 2**-0.5, 2**-0.5)
    np.testing.assert_allclose(f["rotate"](quarter, (1.0, 0.0, 5.0)), (0.0, 1.0, 5.0), atol=1e-12)
    assert f["tilt"](quarter) == 0.0
    assert f["tilt"]((2**-0.5, 0.0, 0.0, 2**-0.5)) == pytest.approx(np.pi / 2)
    assert f["angle"](quarter, tuple(-v for v in quarter)) == pytest.approx(0.0, abs=1e-7)
    assert f["outside"]((0.05, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (0.06, 0.06, 0.07)) == pytest.approx(-0.01)
    eighth = (0.0, 0.0, float(np.sin(np.pi / 8)), float(np.cos(np.pi / 8)))
    turned = f["outside"]((0.05, 0.0, 0.0), (0.0, 0.0, 0.0), eighth, (0.06, 0.06, 0.07))
    assert turned == pytest.approx(0.05), "LIBERO's region collapses when it is turned by 45 degrees"


@pytest.mark.parametrize("most_degrees", [0.5, 20.0, 180.0])
def test_outside_is_liberos_in(most_degrees: float) -> None:
    """LIBERO's box: half extents |R half|, one centimetre further down; from above the same without z."""
    rng = np.random.default_rng(5)
    half = np.array([0.061, 0.03, 0.069])
    seen = set()
    for _ in range(300):
        axis = rng.normal(size=3)
        turn = np.radians(rng.uniform(0.0, most_degrees)) / 2.0
        w, (x, y, z) = np.cos(turn), np.sin(turn) * axis / np.linalg.norm(axis)
        matrix = np.array([
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ])  # fmt: skip
        centre, point = rng.uniform(-0.3, 0.3, size=3), rng.uniform(-0.09, 0.09, size=3)
        size = np.abs(matrix @ half)
        within = (-size - (0.0, 0.0, 0.01) < point) & (point < size)
        args: Any = tuple(centre + point), tuple(centre), (x, y, z, w), tuple(half)
        assert (FUNCTIONS["outside"](*args) < 0) == within.all()  # type: ignore[operator]
        assert (FUNCTIONS["outside_xy"](*args) < 0) == within[:2].all()  # type: ignore[operator]
        seen |= {(bool(within.all()), bool(within[:2].all()))}
    assert len(seen) == 3


def test_being_over_a_tilted_basket_is_judged_on_both_axes() -> None:
    site = "basket_1_contain_region"
    over = Outside.model_validate({"kind": "outside", "point": "ketchup_1", "site": site, "axes": "xy"})
    distance_outside = SpecCompiler(RewardSpec.parse(make_spec()), FACTS).variable(over)
    x, y, z = make_state(FACTS)[f"{site}_pos"]  # type: ignore[misc]
    half = next(place.half_size for place in FACTS.sites if place.name == site)
    for tilted in ((0.0, 0.0175, 0.0, 0.99985), (0.0175, 0.0, 0.0, 0.99985)):  # by two degrees
        for axis, point in enumerate(((x + 0.25, y, z + 0.2), (x, y + 0.25, z + 0.2))):
            state = make_state(FACTS, ketchup_1_pos=point, **{f"{site}_quat": tilted})
            assert distance_outside(state, {}) == pytest.approx(0.25 - half[axis], abs=0.003)


# errors


def broken(path: list[Any], value: Any) -> dict[str, Any]:
    """The spec with one value replaced, or removed if the value is ``...``."""
    spec = make_spec()
    at: Any = spec
    for part in path[:-1]:
        at = at[part]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return spec


STAGE = ["tracks", 0, "stages"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["task"], "libero_object-5", "facts are those of another task"),
        (["success_points"], "5", r"success_points: Input should be a valid number \(got '5'\)"),
        (["success_points"], float("nan"), "not plain JSON"),
        (["extra"], 1, "extra: Extra inputs"),
        (["summary"], 'a """ b', "summary"),
        (["tracks"], ..., "tracks: Field required"),
        (["tracks", 0, "goal"], [1], "no such goal atom"),
        (["tracks", 0, "after"], ["milk"], "may only follow"),
        ([*STAGE, 0, "requires"], [GRASPED], "first stage can require nothing"),
        ([*STAGE, 1, "hold_steps"], 1, "a contact counts after 3 steps"),
        ([*STAGE, 1, "done", 0, "object"], "ketchup", r"choose from ketchup_1, milk_1, basket_1"),
        ([*STAGE, 1, "done", 0, "kind"], "held", r"done\[0\].*choose from compare, grasped"),
        ([*STAGE, 3, "done"], [GRASPED], "last stage is done exactly when"),
        ([*STAGE, 0, "points"], 0.6, "must pay more than the last rung and the pose"),
        ([*STAGE, 0, "ladder", "rungs", 1, "threshold"], 0.16, r"rungs\[1\].threshold: rungs must get harder"),
        ([*STAGE, 0, "ladder", "rungs", 1, "value"], 0.2, "a harder rung must pay more"),
        ([*STAGE, 0, "ladder", "rungs", 0, "threshold"], 9.0, "less than or equal to 4"),
        ([*STAGE, 0, "done", 0, "value"], 0.0, "distance is never below that"),
        ([*STAGE, 0, "done", 0, "variable"], {"kind": "joint", "joint": "cabinet_1_top_level"}, "joint is always below that"),
        ([*STAGE, 0, "pose", "key_pose"], "eef", "choose from grasp"),
        (["key_poses", 0, "name"], "milk_1", "the name is taken"),
        (["key_poses", 0, "frame"], "eef", "choose from ketchup_1"),
        ([*STAGE, 0, "ladder", "variable"], distance("eef", "eef"), "measured against itself"),
    ],
)  # fmt: skip
def test_errors_name_the_field_the_value_and_the_choices(path: list[Any], value: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        RewardProgram.from_spec(broken(path, value), facts=FACTS)


def test_specs_are_read_from_text_bytes_and_paths(tmp_path: Any) -> None:
    spec = RewardSpec.parse(make_spec())
    path = tmp_path / "spec.json"
    path.write_text(spec.to_json())
    for source in (spec, spec.to_json(), spec.to_json().encode(), path, str(path)):
        assert RewardSpec.parse(source).sha256 == spec.sha256
    with pytest.raises(RewardError, match="no reward spec at"):
        RewardSpec.parse(tmp_path / "missing.json")
    with pytest.raises(RewardError, match="duplicate key 'task'"):
        RewardSpec.parse(spec.to_json().replace('"task":', '"task": "libero_goal-1", "task":'))
    with pytest.raises(RewardError, match="larger than"):
        RewardSpec.parse(spec.to_json() + " " * MAX_BYTES)


def test_payment_rules_have_three_names() -> None:
    program = RewardProgram.from_spec(make_spec(), facts=FACTS)
    assert program.payment == "latched"
    with pytest.raises(ValueError, match="payment must be one of"):
        program.with_payment("sparse")  # type: ignore[arg-type]


def test_the_package_is_light() -> None:
    """A worker that runs a reward loads neither torch nor anthropic nor matplotlib, and a missing pydantic names the extra."""
    code = """
import sys
sys.modules["anthropic"] = None
import sb3_tgrpo.rewards as r
r.RewardProgram, r.load_reward, r.VOCABULARY, r.load_traces
heavy = {"torch", "matplotlib", "stable_baselines3", "mujoco", "robosuite", "libero", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    code = """
import sys
sys.modules["pydantic"] = None
import sb3_tgrpo.rewards as r
r.VOCABULARY, r.load_traces
try:
    r.RewardSpec
except ImportError as error:
    assert "sb3-tgrpo[rewards]" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
