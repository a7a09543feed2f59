"""
What the model is told: one fixed block (schema, rules, two worked examples), the same bytes for every task so that it
is cached, then a block of facts about the task, then the verifier's tables of earlier rounds.
"""

import functools
import hashlib
import json
import math

from sb3_tgrpo.rewards.episodes.measure import Measurements, measure, world_box
from sb3_tgrpo.rewards.facts.task_facts import GoalAtom, TaskFacts, data_folder, load_task_facts
from sb3_tgrpo.rewards.program.spec import DEBOUNCE_STEPS, RewardSpec

EXAMPLES = ("libero_goal-7", "libero_object-4")
"""Tasks whose shipped specs are the worked examples."""

_RULES = f"""\
You write dense rewards that score a robot arm's progress in a simulated kitchen or living room (the LIBERO benchmark).
A reward is a JSON document that a program validates, compiles and tests on recorded episodes. It contains no code.

How a document is scored, 20 times a second
- The reward's level is f1 + f2. f1 is the points of the stages that are done plus the highest rung passed of the
  current stage's ladder. f2 (the stage's pose) is weight * max(0, 1 - distance / reach) for the gripper's distance to a
  key pose.
- The robot is paid what the level exceeds its best so far, and success_points once when the goal holds. Returns of several
  attempts are compared with each other, so partial progress must rank attempts correctly.
- A track is one sub-goal. It is complete while its goal atoms hold, whatever its stage. Tracks may be done in any order unless
  "after" names tracks that must be complete first; a track that waits pays nothing.
- A stage falls back to the latest earlier stage whose "requires" holds when its own has not held for {DEBOUNCE_STEPS}
  steps. A stage gives way to the next after "done" has held for hold_steps steps in a row; at most one stage is gained
  per step.

Rules that are checked; a document that breaks one is rejected
1. Only names from the task facts and your own key poses. "eef" is the gripper. Key poses have new names and frames from
   the facts.
2. Every goal atom that does not hold at the start belongs to exactly one track. One that holds at the start gets a
   guard instead.
3. The last stage of a track has done = exactly its goal atoms and hold_steps 1. The first stage requires nothing.
4. Every track about moving an object or opening or turning something has a stage that is done by contact (grasped or
   touched) with hold_steps of at least {DEBOUNCE_STEPS}.
5. Rungs go from easy to hard and pay more and more; last rung plus pose weight is less than the stage's points.
6. Every rung must be passed by every successful episode, and none may already be passed when its stage begins. Use the
   measured numbers: an object's origin is often at its base, so a grasp may be 7 cm from the origin. Put a key pose at
   the measured grasp height and make "approach" done at the measured radius plus 2 to 3 cm.
7. Nothing is paid at the start: no rung, pose or requirement may be satisfied at the reset state.
8. A close goal comes after what has to go inside. Something that goes into a closed drawer needs the drawer opened
   first, in the same track.
9. Points should be of one size: about 1 per stage, success_points about the sum of one track.
10. Robust to 2 mm and 1 degree of noise, to contacts that flicker for two steps, and to which other objects stand around.
"""


@functools.lru_cache(maxsize=1)
def system_prompt() -> str:
    """The fixed block."""
    schema = json.dumps(RewardSpec.model_json_schema(), separators=(",", ":"), sort_keys=True)
    parts = [_RULES, "The JSON schema of a document:", schema]
    for i, task in enumerate(EXAMPLES, start=1):
        facts, spec = load_task_facts(task), RewardSpec.parse(data_folder("specs").joinpath(f"{task}.json").read_text("utf-8"))
        parts += [f"Worked example {i}. Facts:", facts_block(facts, measure(facts, [])), "Document:", spec.to_json()]
    parts.append("Answer with one JSON document for the task below and nothing else.")
    return "\n\n".join(parts)


def prompt_hash() -> str:
    """Identifies the fixed block in provenance and in resumed runs."""
    return hashlib.sha256(system_prompt().encode()).hexdigest()


def facts_block(facts: TaskFacts, measured: Measurements) -> str:
    """The facts about a task that the author of a reward is given."""
    lines = [
        f"task: {facts.task_id}",
        f"instruction: {facts.instruction}",
        f"instruction in the task file: {facts.bddl_instruction}",
        f"limit: {facts.horizon} steps at {facts.control_freq} Hz",
        f"gripper: starts at {_vector(facts.eef_start_pos)}, "
        f"opening {facts.gripper_range[0]:.3f} closed to {facts.gripper_range[1]:.3f}",
        f"objects stand on z = {facts.support_z:.3f}",
        "goal (all of):",
    ]
    for k, atom in enumerate(facts.goal):
        start = " (holds at the start)" if atom.true_at_start else ""
        lines.append(f"  {k}: {atom.predicate} {' '.join(atom.args)}{start}: {_meaning(facts, atom)}")
    lines.append("objects (origin at the start; box relative to the origin, along the world's axes):")
    for thing in facts.objects:
        lo, hi = world_box(thing)
        lines.append(f"  {thing.name}: {thing.kind}, at {_vector(thing.start_pos)}, box {_vector(lo)} to {_vector(hi)}")
    for site in facts.sites:
        owner = f" of {site.parent}" if site.parent else ""
        moved = f", moves with {site.joint}" if site.joint else ""
        lines.append(f"site {site.name}{owner}: at {_vector(site.start_pos)}, half sizes {_vector(site.half_size)}{moved}")
    lines += [f"fixture {fixture.name}: {fixture.kind}, at {_vector(fixture.start_pos)}" for fixture in facts.fixtures]
    for joint in facts.joints:
        marks = ", ".join(f"{t.predicate} when {t.op} {t.value:g}" for t in joint.thresholds)
        lines.append(
            f"joint {joint.name}: {joint.type}, {joint.range[0]:g} to {joint.range[1]:g}, starts at {joint.start:.3f}; {marks}"
        )
    lines += [f"handle {h.name}: moves {h.joint}, at {_vector(h.start_pos)}" for h in facts.handles]
    lines.append("measured in successful episodes (or guessed from sizes where it says 0 episodes):")
    goal = {arg for atom in facts.goal for arg in atom.args}
    for name, grasp in measured.grasps.items():
        if name in goal:
            lines.append(
                f"  grasp of {name}: gripper {grasp.height:.3f} over the origin and {grasp.radius:.3f} beside it, "
                f"opening while carried {_number(grasp.opening)}, least lift {_number(grasp.lift)} ({grasp.episodes} episodes)"
            )
    for k, release in measured.releases.items():
        lines.append(
            f"  goal {k} reached with the gripper at {_vector(release.offset)} from {facts.goal[k].args[1]} and the object "
            f"{release.height:.3f} over it ({release.episodes} episodes)"
        )
    lines += [
        f"  {name} was moved from {reach.distance:.3f} away ({reach.episodes} episodes)"
        for name, reach in measured.reaches.items()
    ]
    return "\n".join(lines)


def _meaning(facts: TaskFacts, atom: GoalAtom) -> str:
    """An atom's exact condition in LIBERO."""
    if atom.predicate in ("open", "close", "turnon", "turnoff"):
        joints = {site.name: site.joint for site in facts.sites}
        for joint in facts.joints:
            if joint.name == joints.get(atom.args[0]) or joint.fixture == atom.args[0]:
                for threshold in joint.thresholds:
                    if threshold.predicate == atom.predicate:
                        return f"{joint.name} {threshold.op} {threshold.value:g}"
        return "its joint is past the threshold"
    thing, target = atom.args
    if atom.predicate == "in":
        return f"the origin of {thing} is inside the box of {target} (1 cm more at the bottom); it may still be held"
    if target in facts.names("object"):
        return f"{thing} touches {target}, is not below it, and their origins are within 0.03 horizontally"
    site = next(site for site in facts.sites if site.name == target)
    touch = f" and it touches {site.parent}" if site.parent else "; no contact needed"
    return f"the origin of {thing} is within the half sizes of {target} horizontally and up to 0.10 above it{touch}"


def _vector(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"


def _number(value: float) -> str:
    return "not measured" if math.isnan(value) else f"{value:.3f}"
