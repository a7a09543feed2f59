"""
From a checked spec to closures over float tuples.

``compile_spec`` gives a pure function of the state and a memory. Its level is f1 + f2 of the paper's equation 1.
:mod:`sb3_tgrpo.rewards.program.program` turns levels into rewards. :mod:`sb3_tgrpo.rewards.program.printing` writes the same
machine as readable Python, and a test holds the two equal.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sb3_tgrpo.rewards.facts import helpers
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, Vec3
from sb3_tgrpo.rewards.program import spec as s
from sb3_tgrpo.rewards.program.level import Compiled, Info, State, StateLevel

T = TypeVar("T")
Reader = Callable[[State, Mapping[str, Vec3]], T]
"""A function of the state and of the positions of objects at reset."""


class Counters(NamedTuple):
    """
    A track's memory.

    :param at: Stage the track is in.
    :param held: Steps in a row for which the stage has been done.
    :param lost: Steps in a row for which what the stage requires has been missing.
    """

    at: int = 0
    held: int = 0
    lost: int = 0


class CompiledStage(NamedTuple):
    """Functions of one stage."""

    base: float
    requires: tuple[Reader[bool], ...]
    done: tuple[Reader[bool], ...]
    hold_steps: int
    ladder: Reader[float] | None
    pose: Reader[float] | None


class CompiledTrack(NamedTuple):
    """Functions of one track; ``after`` are indices of earlier tracks."""

    name: str
    goal: tuple[str, ...]
    after: tuple[int, ...]
    stages: tuple[CompiledStage, ...]
    points: float


class SpecCompiler:
    """Turns names and numbers into closures, noting the state keys they read."""

    def __init__(self, spec: s.RewardSpec, facts: TaskFacts) -> None:
        self.poses = {pose.name: pose for pose in spec.key_poses}
        self.half_sizes = {site.name: site.half_size for site in facts.sites}
        self.keys: set[str] = {"success"}
        self.start_objects: set[str] = set()

    def key(self, name: str) -> str:
        self.keys.add(name)
        return name

    def point(self, name: str) -> Reader[Vec3]:
        pose = self.poses.get(name)
        if pose is None:
            key = self.key(f"{name}_pos")
            return lambda state, start: state[key]  # type: ignore[return-value]
        key = self.key(f"{pose.frame}_pos")
        offset = (pose.offset.x, pose.offset.y, pose.offset.z)
        add, rotate = helpers.add, helpers.rotate
        if pose.axes == "world":
            return lambda state, start: add(state[key], offset)  # type: ignore[arg-type]
        turn = self.key(f"{pose.frame}_quat")
        return lambda state, start: add(state[key], rotate(state[turn], offset))  # type: ignore[arg-type]

    def variable(self, v: Any) -> Reader[float]:
        """A scalar of the state."""
        if isinstance(v, s.Distance):
            a, b = self.point(v.a), self.point(v.b)
            if v.metric == "z":
                return lambda state, start: abs(a(state, start)[2] - b(state, start)[2])
            measure = helpers.distance if v.metric == "xyz" else helpers.distance_xy
            return lambda state, start: measure(a(state, start), b(state, start))
        if isinstance(v, s.Height):
            upper, lower = self.point(v.a), self.point(v.b)
            return lambda state, start: upper(state, start)[2] - lower(state, start)[2]
        if isinstance(v, s.Rise):
            name, key = v.object, self.key(f"{v.object}_pos")
            self.start_objects.add(name)
            return lambda state, start: state[key][2] - start[name][2]  # type: ignore[index]
        if isinstance(v, s.Outside):
            point = self.point(v.point)
            outside = helpers.outside if v.axes == "xyz" else helpers.outside_xy
            centre, turn = self.key(f"{v.site}_pos"), self.key(f"{v.site}_quat")
            half = self.half_sizes[v.site]
            return lambda state, start: outside(point(state, start), state[centre], state[turn], half)  # type: ignore[arg-type]
        if isinstance(v, s.Tilt):
            turn, tilt = self.key(f"{v.entity}_quat"), helpers.tilt
            return lambda state, start: tilt(state[turn])  # type: ignore[arg-type]
        key = self.key(f"{v.joint}_qpos" if isinstance(v, s.Joint) else "gripper_opening")
        return lambda state, start: state[key]  # type: ignore[return-value]

    def condition(self, c: Any) -> Reader[bool]:
        """A yes or no of the state."""
        if isinstance(c, s.AnyOf):
            parts = tuple(self.condition(part) for part in c.conditions)
            return lambda state, start: any(part(state, start) for part in parts)
        if isinstance(c, s.Compare):
            variable, value = self.variable(c.variable), c.value
            if c.op == "below":
                return lambda state, start: variable(state, start) < value
            return lambda state, start: variable(state, start) > value
        if isinstance(c, s.Released):
            left, right = self.key(f"{c.object}_left_pad"), self.key(f"{c.object}_right_pad")
            return lambda state, start: not (state[left] or state[right])
        name = f"{c.object}_grasped" if isinstance(c, s.Grasped) else f"goal_{c.index}" if isinstance(c, s.Goal) else ""
        key = self.key(name or f"{c.name}_touched")
        return lambda state, start: state[key]  # type: ignore[return-value]

    def ladder(self, ladder: s.Ladder) -> Reader[float]:
        variable = self.variable(ladder.variable)
        rungs = tuple(x for rung in ladder.rungs for x in (rung.threshold, rung.value))
        climb = helpers.ladder_below if ladder.op == "below" else helpers.ladder_above
        return lambda state, start: climb(variable(state, start), *rungs)

    def pose(self, pose: s.PoseShaping) -> Reader[float]:
        point, reach, weight = self.point(pose.key_pose), pose.reach, pose.weight
        eef, distance, closeness = self.key("eef_pos"), helpers.distance, helpers.closeness
        return lambda state, start: weight * closeness(distance(state[eef], point(state, start)), reach)  # type: ignore[arg-type]

    def track(self, track: s.Track, names: Sequence[str]) -> CompiledTrack:
        stages, base = [], 0.0
        for stage in track.stages:
            stages.append(
                CompiledStage(
                    base,
                    tuple(self.condition(c) for c in stage.requires),
                    tuple(self.condition(c) for c in stage.done),
                    stage.hold_steps,
                    None if stage.ladder is None else self.ladder(stage.ladder),
                    None if stage.pose is None else self.pose(stage.pose),
                )
            )
            base += stage.points
        goal = tuple(self.key(f"goal_{k}") for k in track.goal)
        return CompiledTrack(track.name, goal, tuple(map(names.index, track.after)), tuple(stages), base)


def compile_spec(spec: s.RewardSpec, facts: TaskFacts) -> Compiled:
    """Compile a spec that :func:`sb3_tgrpo.rewards.program.static_checks.check_spec` found nothing wrong with."""
    compiler = SpecCompiler(spec, facts)
    names = [track.name for track in spec.tracks]
    tracks = tuple(compiler.track(track, names) for track in spec.tracks)
    guards = tuple((compiler.condition(guard.keep), guard.points) for guard in spec.guards)
    return Compiled(
        partial(_evaluate, tracks, guards),
        tuple(sorted(compiler.keys)),
        tuple(sorted(compiler.start_objects)),
        tuple(Counters() for _ in names),
        spec.n_stages,
        spec.max_level,
        -sum(guard.points for guard in spec.guards),
        spec.success_points,
    )


def _holds(conditions: tuple[Reader[bool], ...], state: State, start: Mapping[str, Vec3]) -> bool:
    for condition in conditions:
        if not condition(state, start):
            return False
    return True


def advance(track: CompiledTrack, counters: Counters, state: State, start: Mapping[str, Vec3]) -> Counters:
    """
    One step of a track's stage machine.

    The goal's atoms complete the track at once. Otherwise, a stage whose requirements (a complete track: whose atoms)
    have been missing for :data:`~sb3_tgrpo.rewards.program.spec.DEBOUNCE_STEPS` steps falls back to the last stage whose
    requirements hold, and a stage that has been done for its ``hold_steps`` gives way to the next; at most one stage is
    gained a step.
    """
    at, held, lost = counters
    n_stages = len(track.stages)
    for key in track.goal:
        if not state[key]:
            break
    else:
        return Counters(n_stages, 0, 0)
    kept = at < n_stages and _holds(track.stages[at].requires, state, start)
    lost = 0 if kept else lost + 1
    if lost >= s.DEBOUNCE_STEPS:
        at, held, lost = min(at, n_stages) - 1, 0, 0
        while at > 0 and not _holds(track.stages[at].requires, state, start):
            at -= 1
        at, kept = max(at, 0), True
    if at < n_stages - 1:
        stage = track.stages[at]
        held = held + 1 if kept and _holds(stage.done, state, start) else 0
        if held >= stage.hold_steps:
            at, held, lost = at + 1, 0, 0
    return Counters(at, held, lost)


def _evaluate(
    tracks: tuple[CompiledTrack, ...],
    guards: tuple[tuple[Reader[bool], float], ...],
    state: State,
    info: Info,
    memory: tuple[Counters, ...],
    start: Mapping[str, Vec3],
) -> StateLevel:
    """The level of a state; ``memory`` holds one :class:`Counters` per track."""
    stages = shaping = 0.0
    new: list[Counters] = []
    for track, counters in zip(tracks, memory, strict=True):
        if any(new[i].at < len(tracks[i].stages) for i in track.after):
            new.append(Counters())
            continue
        counters = advance(track, counters, state, start)
        new.append(counters)
        if counters.at == len(track.stages):
            stages += track.points
            continue
        stage = track.stages[counters.at]
        stages += stage.base
        if stage.ladder is not None:
            stages += stage.ladder(state, start)
        if stage.pose is not None:
            shaping += stage.pose(state, start)
    for keep, points in guards:
        if not keep(state, start):
            stages -= points
    at = tuple((track.name, counters.at) for track, counters in zip(tracks, new, strict=True))
    return StateLevel(stages + shaping, shaping, sum(counters.at for counters in new), at, tuple(new))
