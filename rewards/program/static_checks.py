"""Checks of a spec that need no run: names against the task's facts, and the order of its payments."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sb3_tgrpo.rewards.facts.errors import Problem, shorten
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts
from sb3_tgrpo.rewards.program import spec as s

_RESERVED = {"eef", "gripper", "goal", "success", "step", "state", "info", "stage", "stages", "shaping", "level", "memory"}


def check_spec(spec: s.RewardSpec, facts: TaskFacts) -> list[Problem]:
    """All that is wrong with names and payments of a parsed spec (checks V1 and V2), empty if the spec can be compiled."""
    return check_names(spec, facts) + check_payments(spec, facts)


def check_names(spec: s.RewardSpec, facts: TaskFacts) -> list[Problem]:
    """V1: every name is the task's, every goal atom is somebody's goal, references point backwards."""
    return list(_Names(spec, facts).problems())


class _Names:
    def __init__(self, spec: s.RewardSpec, facts: TaskFacts) -> None:
        self.spec, self.facts = spec, facts
        self.objects = facts.names("object")
        self.sites = facts.names("site")
        self.bodies = self.objects + facts.names("fixture")
        self.handles = facts.names("handle")
        self.frames = self.bodies + self.sites
        self.poses = tuple(pose.name for pose in spec.key_poses)
        self.points = ("eef", *self.frames, *self.handles, *self.poses)

    def problems(self) -> Iterator[Problem]:
        if self.spec.task != self.facts.task_id:
            yield Problem("task", self.spec.task, "the facts are those of another task", (self.facts.task_id,))
        yield from self.key_poses()
        yield from _twice("tracks", [track.name for track in self.spec.tracks])
        yield from _twice("guards", [guard.name for guard in self.spec.guards])
        for i, track in enumerate(self.spec.tracks):
            yield from self.track(f"tracks[{i}]", track, [other.name for other in self.spec.tracks[:i]])
        for i, guard in enumerate(self.spec.guards):
            yield from self.condition(f"guards[{i}].keep", guard.keep)
        yield from self.coverage()

    def key_poses(self) -> Iterator[Problem]:
        yield from _twice("key_poses", self.poses)
        taken = {*self.frames, *self.handles, *self.facts.names("joint"), *_RESERVED}
        for i, pose in enumerate(self.spec.key_poses):
            where = f"key_poses[{i}]"
            if pose.name in taken:
                yield Problem(f"{where}.name", repr(pose.name), "the name is taken by a thing of the task")
            choices = self.frames if pose.axes == "frame" else self.frames + self.handles
            yield from _known(f"{where}.frame", pose.frame, choices)

    def track(self, where: str, track: s.Track, earlier: Sequence[str]) -> Iterator[Problem]:
        for k, index in enumerate(track.goal):
            yield from self.atom(f"{where}.goal[{k}]", index)
        for k, name in enumerate(track.after):
            yield from _known(f"{where}.after[{k}]", name, earlier, "tracks may only follow tracks listed before them")
        yield from _twice(f"{where}.stages", [stage.name for stage in track.stages])
        if track.stages[0].requires:
            yield Problem(f"{where}.stages[0].requires", "", "the first stage can require nothing: tracks fall back to it")
        last = track.stages[-1]
        wanted = {("goal", index) for index in track.goal}
        if {(c.kind, getattr(c, "index", None)) for c in last.done} != wanted or last.hold_steps != 1:
            yield Problem(
                f"{where}.stages[{len(track.stages) - 1}].done",
                "",
                "the last stage is done exactly when the track's goal atoms hold, with hold_steps 1",
            )
        for j, stage in enumerate(track.stages):
            yield from self.stage(f"{where}.stages[{j}]", stage)
        yield from self.contact(where, track)

    def contact(self, where: str, track: s.Track) -> Iterator[Problem]:
        """A sub-goal about an object, or about opening or turning something, has a stage that is done by touching it."""
        movers = {"open": self.handles, "turnon": self.handles, "in": self.objects, "on": self.objects}
        for index in track.goal:
            atom = self.facts.goal[index] if index < len(self.facts.goal) else None
            if atom is None or atom.predicate not in movers:
                continue
            wanted = (atom.args[0],) if atom.args[0] in self.objects else movers[atom.predicate]
            if not set(wanted) & {name for stage in track.stages for name in stage.contacts}:
                message = f"no stage of goal atom {index} ({atom.predicate} {' '.join(atom.args)}) is done by contact"
                yield Problem(f"{where}.stages", "", message, wanted)

    def stage(self, where: str, stage: s.Stage) -> Iterator[Problem]:
        for field, conditions in (("requires", stage.requires), ("done", stage.done)):
            for k, condition in enumerate(conditions):
                yield from self.condition(f"{where}.{field}[{k}]", condition)
        if stage.ladder is not None:
            yield from self.variable(f"{where}.ladder.variable", stage.ladder.variable)
        if stage.pose is not None:
            yield from _known(f"{where}.pose.key_pose", stage.pose.key_pose, self.poses)
        if stage.contacts and stage.hold_steps < s.DEBOUNCE_STEPS:
            message = f"a contact counts after {s.DEBOUNCE_STEPS} steps or more: a brushing finger is not a grasp"
            yield Problem(f"{where}.hold_steps", str(stage.hold_steps), message)

    def condition(self, where: str, c: Any) -> Iterator[Problem]:
        if isinstance(c, s.AnyOf):
            for i, part in enumerate(c.conditions):
                yield from self.condition(f"{where}.conditions[{i}]", part)
        elif isinstance(c, s.Compare):
            yield from self.variable(f"{where}.variable", c.variable)
        elif isinstance(c, s.Grasped | s.Released):
            yield from _known(f"{where}.object", c.object, self.objects)
        elif isinstance(c, s.Touched):
            yield from _known(f"{where}.name", c.name, self.objects + self.handles)
        else:
            yield from self.atom(f"{where}.index", c.index)

    def variable(self, where: str, v: Any) -> Iterator[Problem]:
        if isinstance(v, s.Distance | s.Height):
            yield from _known(f"{where}.a", v.a, self.points)
            yield from _known(f"{where}.b", v.b, self.points)
            if v.a == v.b:
                yield Problem(f"{where}.b", repr(v.b), "it is measured against itself")
        elif isinstance(v, s.Rise):
            yield from _known(f"{where}.object", v.object, self.objects)
        elif isinstance(v, s.Outside):
            yield from _known(f"{where}.point", v.point, self.points)
            yield from _known(f"{where}.site", v.site, self.sites)
        elif isinstance(v, s.Tilt):
            yield from _known(f"{where}.entity", v.entity, self.bodies)
        elif isinstance(v, s.Joint):
            yield from _known(f"{where}.joint", v.joint, self.facts.names("joint"))

    def atom(self, where: str, index: int) -> Iterator[Problem]:
        yield from _known(where, str(index), [str(k) for k in range(len(self.facts.goal))], "there is no such goal atom")

    def coverage(self) -> Iterator[Problem]:
        covered = [index for track in self.spec.tracks for index in track.goal]
        for index, atom in enumerate(self.facts.goal):
            text = f"({atom.predicate} {' '.join(atom.args)})"
            if covered.count(index) > 1:
                yield Problem("tracks", str(index), f"goal atom {index} {text} belongs to more than one track")
            elif index in covered and atom.true_at_start:
                yield Problem("tracks", str(index), f"goal atom {index} {text} holds at reset: guard it, do not pay for it")
            elif index not in covered and not atom.true_at_start:
                yield Problem("tracks", "", f"goal atom {index} {text} is no track's goal")


def check_payments(spec: s.RewardSpec, facts: TaskFacts) -> list[Problem]:
    """V2: rungs get harder and pay more, and a stage that is done pays more than its ladder and pose together."""
    problems: list[Problem] = []
    ranges = {f"{joint.name}": joint.range for joint in facts.joints}
    for i, track in enumerate(spec.tracks):
        for j, stage in enumerate(track.stages):
            problems += _stage_payments(f"tracks[{i}].stages[{j}]", stage, ranges)
    return problems


def _stage_payments(where: str, stage: s.Stage, ranges: dict[str, tuple[float, float]]) -> Iterator[Problem]:
    most = 0.0 if stage.pose is None else stage.pose.weight
    if stage.ladder is not None:
        rungs = stage.ladder.rungs
        most += rungs[-1].value
        for k in range(1, len(rungs)):
            harder = (rungs[k].threshold < rungs[k - 1].threshold) == (stage.ladder.op == "below")
            if not harder or rungs[k].threshold == rungs[k - 1].threshold:
                yield Problem(f"{where}.ladder.rungs[{k}].threshold", str(rungs[k].threshold), "rungs must get harder")
            if rungs[k].value <= rungs[k - 1].value:
                yield Problem(f"{where}.ladder.rungs[{k}].value", str(rungs[k].value), "a harder rung must pay more")
        variable = stage.ladder.variable
        for k, rung in enumerate(rungs):
            yield from _reachable(f"{where}.ladder.rungs[{k}].threshold", variable, stage.ladder.op, rung.threshold, ranges)
    for field, conditions in (("requires", stage.requires), ("done", stage.done)):
        for k, condition in enumerate(conditions):
            if isinstance(condition, s.Compare):
                place = f"{where}.{field}[{k}].value"
                yield from _reachable(place, condition.variable, condition.op, condition.value, ranges)
    if most >= stage.points:
        message = f"being done must pay more than the last rung and the pose ({most:g})"
        yield Problem(f"{where}.points", str(stage.points), message)


def _reachable(where: str, variable: Any, op: str, value: float, ranges: dict[str, tuple[float, float]]) -> Iterator[Problem]:
    """Comparisons that can never, or always, hold."""
    low, high = -4.0, 4.0
    if isinstance(variable, s.Distance | s.Tilt):
        low = 0.0
    elif isinstance(variable, s.Opening):
        low, high = 0.0, 0.1
    elif isinstance(variable, s.Joint):
        low, high = ranges.get(variable.joint, (low, high))
    if (op == "below" and value <= low) or (op == "above" and value >= high):
        yield Problem(where, f"{value:g}", f"{variable.kind} is never {op} that: it lies in [{low:g}, {high:g}]")
    if (op == "below" and value > high) or (op == "above" and value < low):
        yield Problem(where, f"{value:g}", f"{variable.kind} is always {op} that: it lies in [{low:g}, {high:g}]")


def _twice(where: str, names: Sequence[str]) -> Iterator[Problem]:
    for i, name in enumerate(names):
        if name in names[:i]:
            yield Problem(f"{where}[{i}].name", shorten(name), "the name is used twice")


def _known(where: str, name: str, choices: Iterable[str], message: str = "unknown name") -> Iterator[Problem]:
    choices = tuple(choices)
    if name not in choices:
        yield Problem(where, shorten(name), message, choices)
