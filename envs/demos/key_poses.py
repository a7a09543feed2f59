"""
Key poses: where the gripper is at the critical steps of successful demonstrations (arXiv 2506.08440, section IV-A).

A step is critical where the gripper closes on something (``grasp``), has lifted it (``lift``), has brought it over where it
goes (``above_goal``) and lets go of it (``release``, or ``end`` if the episode succeeds before), once per object. Where
nothing is grasped, minima of the gripper's speed count (``rest``). With a reward program, the boundaries of its stages count
too. Each is expressed in the frame of what it belongs to: the object while it is fetched, the goal afterwards.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sb3_tgrpo.envs.demos.files import Demo, Demos, load_demos
from sb3_tgrpo.envs.experts.motion import rotation_of
from sb3_tgrpo.envs.libero.target_variants import target_facts
from sb3_tgrpo.rewards.episodes.traces import Trace
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts
from sb3_tgrpo.rewards.facts.task_name import TaskName
from sb3_tgrpo.rewards.facts.vocabulary import State
from sb3_tgrpo.settings import typed

if TYPE_CHECKING:
    from sb3_tgrpo.rewards.program.program import RewardProgram

Source = str | os.PathLike[str] | Demo | Demos | Trace | Sequence[Demo] | Sequence[Trace]

_LIFTED = 0.9
"""Share of the way up at which an object counts as lifted."""
_ABOVE = 0.025
"""Horizontal distance from where it is let go at which the gripper counts as above the goal, metres."""
_SLOW = 0.3
"""A rest is a minimum of the speed below this share of its median."""
_APART = 8
"""Steps between rests."""
_NEAR = 0.15
"""What the gripper moved is no further away than this, metres."""


@dataclass(frozen=True)
class KeyPose:
    """
    One key pose, averaged over demonstrations.

    :param name: ``grasp``, ``lift``, ``above_goal``, ``release``, ``end``, ``rest`` or ``stage``, numbered from the second on.
    :param frame: Object, site or handle that it is relative to; ``"world"`` if there is none.
    :param position: (3,), mean position of the end effector in that frame, metres.
    :param spread: (3,), standard deviation.
    :param world: (3,), mean position in the world.
    :param gripper: Command of the gripper.
    :param opening: Mean distance between the fingers, metres.
    :param step: Mean step.
    :param n: Number of demonstrations that have it.
    """

    name: str
    frame: str
    position: np.ndarray
    spread: np.ndarray
    world: np.ndarray
    gripper: Literal["open", "closed"]
    opening: float
    step: float
    n: int


@dataclass(frozen=True)
class KeyPoses(Sequence[KeyPose]):
    """
    Key poses in time order; ``numpy.asarray`` gives their positions, (j, 3).

    :param poses: The poses.
    :param axes: Axes of the positions, the world's or the frame's own.
    :param n_demos: Number of demonstrations that they are averaged over.
    """

    poses: tuple[KeyPose, ...]
    axes: Literal["world", "frame"]
    n_demos: int

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, index: Any) -> Any:
        return self.poses[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array([pose.position for pose in self.poses], dtype or np.float64).reshape(-1, 3)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in time order."""
        return tuple(pose.name for pose in self.poses)

    @property
    def world(self) -> np.ndarray:
        """(j, 3), mean positions in the world."""
        return np.array([pose.world for pose in self.poses]).reshape(-1, 3)

    @property
    def spread(self) -> np.ndarray:
        """(j, 3), standard deviations."""
        return np.array([pose.spread for pose in self.poses]).reshape(-1, 3)

    def to_dict(self) -> list[dict[str, Any]]:
        """The poses as a reward specification's ``key_poses`` holds them."""
        return [
            {
                "name": pose.name,
                "frame": pose.frame,
                "axes": self.axes,
                "offset": dict(zip("xyz", (round(float(value), 4) for value in pose.position), strict=True)),
            }
            for pose in self.poses
        ]

    def __str__(self) -> str:
        lines = [f"{'key pose':<14} {'frame':<32} {'x':>7} {'y':>7} {'z':>7}  {'spread':>7}  gripper       step   n"]
        for pose in self.poses:
            x, y, z = pose.position
            spread = float(np.linalg.norm(pose.spread))
            grip = f"{pose.gripper} {pose.opening:.3f}"
            where = f"{x:>7.3f} {y:>7.3f} {z:>7.3f}  {spread:>7.3f}"
            lines.append(f"{pose.name:<14} {pose.frame:<32} {where}  {grip:<12} {pose.step:>5.0f} {pose.n:>3}")
        return "\n".join(lines)


# ---------------------------------------------------------------------- episodes


@dataclass
class _Episode:
    """
    An episode as key poses need it.

    :param position: (T, 3) of the end effector.
    :param closed: (T,), whether the gripper is commanded to close.
    :param opening: (T,), metres.
    :param states: T states in the vocabulary, None if unknown.
    """

    position: np.ndarray
    closed: np.ndarray
    opening: np.ndarray
    states: Sequence[State] | None

    def __len__(self) -> int:
        return len(self.position)


def _from_trace(trace: Trace) -> _Episode:
    if trace.actions is None:
        raise ValueError(f"trace {trace.name} has no actions: key poses need the gripper's commands.")
    states = trace.states[:-1]
    return _Episode(
        np.array([state["eef_pos"] for state in states]),
        np.asarray(trace.actions)[:, 6] > 0,
        np.array([state["gripper_opening"] for state in states]),
        states,
    )


def _from_demo(demo: Demo) -> _Episode:
    states = [_row(demo.facts, step) for step in range(len(demo))] if demo.facts else None
    return _Episode(demo.ee_pos, demo.actions[:, 6] > 0, demo.gripper_opening, states)


def _row(facts: Mapping[str, np.ndarray], step: int) -> State:
    state: State = {}
    for key, values in facts.items():
        value = values[step]
        state[key] = tuple(value.tolist()) if value.ndim else value.item()
    return state


def _collect(demos: Source) -> tuple[list[_Episode], str, list[Demo]]:
    """Successful episodes, the task, and, where facts are missing, the demonstrations they came from."""
    if isinstance(demos, str | os.PathLike):
        demos = load_demos(demos)
    task = demos.task if isinstance(demos, Demos | Trace) else ""
    items = [demos] if isinstance(demos, Demo | Trace) else list(demos)
    if not items:
        raise ValueError("demos is empty: key poses need at least one successful demonstration.")
    traces = [item for item in items if isinstance(item, Trace)]
    found = [item for item in items if isinstance(item, Demo)]
    if len(traces) + len(found) != len(items):
        raise TypeError(f"demos must hold demonstrations or traces, got {type(items[0]).__name__}.")
    if traces:
        _one_task({trace.task for trace in traces})
        good = [trace for trace in traces if trace.success_step is not None]
        episodes, kept, task = [_from_trace(trace) for trace in good], [], traces[0].task
    else:
        kept = [demo for demo in found if demo.success]
        episodes = [_from_demo(demo) for demo in kept]
        if kept and not task:
            task = _one_task({load_demos(path, max_demos=1).task for path in {demo.path for demo in kept}})
    if not episodes:
        raise ValueError(f"demos has {len(items)} episodes, and none of them is successful: key poses come from successes.")
    return episodes, task, kept


def _one_task(tasks: set[str]) -> str:
    if len(tasks) > 1:
        raise ValueError(f"demos are of several tasks ({', '.join(sorted(tasks))}): use the demonstrations of one.")
    return next(iter(tasks))


def _restore_facts(episodes: list[_Episode], task: str, demos: list[Demo], steps: list[dict[str, int]]) -> None:
    """Fill in the facts at the critical steps by setting the recorded states in the simulator."""
    from sb3_tgrpo.envs.libero.env import LiberoEnv

    name, _, target = task.partition(":")
    env = LiberoEnv(*TaskName.parse(name), target=target or None, observations=())
    try:
        env.reset(seed=0)
        for episode, demo, found in zip(episodes, demos, steps, strict=True):
            if episode.states is None and demo.states is not None:
                states: list[State] = [{} for _ in range(len(episode))]
                for step in found.values():
                    env.set_state(demo.states[step])
                    states[step] = env.facts()
                episode.states = states
    finally:
        env.close()


# ---------------------------------------------------------------------- critical steps


def _speed(position: np.ndarray) -> np.ndarray:
    """(T,), metres per step, smoothed over three steps."""
    speed = np.linalg.norm(np.diff(position, axis=0, prepend=position[:1]), axis=1)
    padded = np.pad(speed, 1, mode="edge")
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def critical_steps(position: np.ndarray, closed: np.ndarray, opening: np.ndarray) -> dict[str, int]:
    """
    The critical steps of one episode.

    :param position: (T, 3) of the end effector, metres.
    :param closed: (T,), whether the gripper is commanded to close.
    :param opening: (T,), distance between the fingers, metres.
    :return: Steps by name, in time order.
    """
    changes = np.flatnonzero(np.diff(closed.astype(int))) + 1
    bounds = [0, *changes.tolist(), len(closed)]
    found: dict[str, int] = {}
    count = 0
    for first, last in itertools.pairwise(bounds):
        if not closed[first] or first == 0 or last - first < 3:
            continue
        rise = position[first:last, 2] - position[first, 2]
        if rise.max() < 0.02:  # a try that lifted nothing, or nothing to lift: a drawer, a knob
            continue
        count += 1
        end = "" if count == 1 else f"_{count}"
        found |= {f"{name}{end}": step for name, step in _carry(position, opening, first, last, len(closed)).items()}
    if not found:
        return _rests(position)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _carry(position: np.ndarray, opening: np.ndarray, first: int, last: int, length: int) -> dict[str, int]:
    """Steps of one object's way, from the command to close (``first``) to the command to open (``last``)."""
    # Grasped: the fingers have come to rest, and the hand has not left yet.
    rise = position[first:last, 2] - position[first, 2]
    leaving = int(np.argmax(rise > min(0.01, 0.5 * float(rise.max()))))
    resting = np.flatnonzero(np.abs(np.diff(opening[first : first + leaving + 1])) < 5e-4)
    grasp = first + (int(resting[-1]) + 1 if len(resting) else leaving)
    lift = first + int(np.argmax(rise >= _LIFTED * rise.max()))
    final = min(last, length - 1)
    away = np.linalg.norm(position[:, :2] - position[final, :2], axis=1)
    outside = np.flatnonzero(away[lift : final + 1] > _ABOVE)
    above = min(lift + (int(outside[-1]) + 1 if len(outside) else 0), final)
    return {"grasp": grasp, "lift": max(lift, grasp), "above_goal": above, "release" if last < length else "end": final}


def _rests(position: np.ndarray) -> dict[str, int]:
    """Minima of the speed, and the end."""
    speed = _speed(position)
    limit = _SLOW * float(np.median(speed))
    minima = [
        step
        for step in range(_APART, len(speed) - 1)
        if speed[step] <= min(limit, speed[step - 1]) and speed[step] < speed[step + 1]
    ]
    kept: list[int] = []
    for step in minima:
        if not kept or step - kept[-1] >= _APART:
            kept.append(step)
    names = {f"rest_{i + 1}" if i else "rest": step for i, step in enumerate(kept)}
    return {**names, "end": len(speed) - 1}


def _stage_steps(episode: _Episode, program: "RewardProgram") -> dict[str, int]:
    """Steps at which so many stages are done for the first time."""
    if episode.states is None:
        raise ValueError("program needs the facts of every step: files that sb3-tgrpo collected, or traces, have them.")
    memory = program.reset()
    found: dict[str, int] = {}
    most = 0
    for step, state in enumerate(episode.states):
        result, memory = program(state, {"step": step}, memory)
        if result.stage > most:
            most = result.stage
            found[f"stage_{most}"] = step
    return found


# ---------------------------------------------------------------------- frames


def _frames(states: Sequence[State], steps: Mapping[str, int], facts: TaskFacts) -> dict[str, str]:
    """What each critical step belongs to."""
    frames: dict[str, str] = {}
    moved = [name for name in facts.names("object") if f"{name}_pos" in states[next(iter(steps.values()))]]
    for name, step in steps.items():
        kind, _, number = name.partition("_") if not name.startswith("above_goal") else ("above_goal", "", name[11:])
        if kind in ("grasp", "lift"):
            frames[name] = _nearest(states[step], moved) or "world"
        elif kind in ("above_goal", "release", "end", "rest"):
            grasp = f"grasp_{number}" if number else "grasp"
            thing = frames.get(grasp) or (_nearest(states[steps[grasp]], moved) if grasp in steps else "")
            frames[name] = _goal_of(thing, facts) or _nearest(states[step], facts.names("handle")) or "world"
        else:
            frames[name] = _stage_frame(step, steps, states, moved, facts)
    return frames


def _stage_frame(step: int, steps: Mapping[str, int], states: Sequence[State], moved: list[str], facts: TaskFacts) -> str:
    """A stage's end belongs to the object until it is lifted, and to its goal from then on."""
    grasps = {name: at for name, at in steps.items() if name.startswith("grasp")}
    if not grasps:
        return _nearest(states[step], facts.names("handle")) or "world"
    current = max((name for name in grasps if grasps[name] <= step), key=lambda name: grasps[name], default=min(grasps))
    thing = _nearest(states[grasps[current]], moved)
    lifted = steps.get(current.replace("grasp", "lift"), step)
    return (_goal_of(thing, facts) if step > lifted else thing) or "world"


def _nearest(state: State, names: Sequence[str]) -> str:
    """The thing nearest to the gripper; what the fingers hold, if they do."""
    held = [name for name in names if state.get(f"{name}_grasped")]
    eef = np.array(state["eef_pos"])
    distances = {name: float(np.linalg.norm(np.array(state[f"{name}_pos"]) - eef)) for name in held or names}
    best = min(distances, key=lambda name: distances[name], default="")
    return best if best and distances[best] < _NEAR else ""


def _goal_of(thing: str, facts: TaskFacts) -> str:
    """Where the goal wants a thing: an object or a site."""
    return next((atom.args[1] for atom in facts.goal if atom.args[0] == thing and len(atom.args) > 1), "")


# ---------------------------------------------------------------------- all together


def key_poses(
    demos: Source, program: "RewardProgram | None" = None, *, axes: Literal["world", "frame"] = "world", share: float = 0.5
) -> KeyPoses:
    """
    End-effector positions at the critical steps of successful demonstrations (paper, section IV-A).

    ``numpy.asarray(key_poses("demos.hdf5"))`` is the paper's set of key poses, (j, 3).

    :param demos: HDF5 file, demonstrations of :func:`~sb3_tgrpo.envs.demos.files.load_demos`, or recorded traces.
        Unsuccessful ones are left out. In files that are not ours, the simulator finds where things are.
    :param program: Reward program whose stages' boundaries are critical steps too.
    :param axes: Axes of the offsets from the frame's origin: ``"world"``, or ``"frame"`` for the frame's own.
    :param share: Smallest share of the demonstrations in which a pose must occur.
    :raises ValueError: If there is no successful demonstration, if they are of several tasks, or the program is of another.
    """
    typed(Literal["world", "frame"], axes, "axes")
    episodes, task, kept = _collect(demos)
    steps = [critical_steps(episode.position, episode.closed, episode.opening) for episode in episodes]
    facts = _known_facts(task)
    if program is not None:
        if task and program.task != task.partition(":")[0]:
            raise ValueError(f"program is for {program.task}, the demonstrations are of {task}.")
        if facts is not None and program.instruction != facts.instruction:
            raise ValueError(f"program is for {program.instruction!r}, the demonstrations are of {facts.instruction!r}.")
        for episode, found in zip(episodes, steps, strict=True):
            found |= _stage_steps(episode, program)
    if facts is not None and any(episode.states is None for episode in episodes):
        _restore_facts(episodes, task, kept, steps)
    return KeyPoses(tuple(_average(episodes, steps, facts, axes, share)), axes, len(episodes))


def _known_facts(task: str) -> TaskFacts | None:
    name, _, target = task.partition(":")
    try:
        facts = load_task_facts(name)
    except ValueError:  # a task of the user's own
        return None
    return target_facts(facts, target) if target else facts


def _average(
    episodes: list[_Episode], steps: list[dict[str, int]], facts: TaskFacts | None, axes: str, share: float
) -> Iterator[KeyPose]:
    frames = [
        _frames(episode.states, found, facts) if facts is not None and episode.states is not None else {}
        for episode, found in zip(episodes, steps, strict=True)
    ]
    names = {name for found in steps for name in found}
    poses = []
    for name in names:
        having = [i for i, found in enumerate(steps) if name in found]
        # Demonstrations may take objects in different order: the frame that most of them have decides.
        named = [frames[i].get(name, "world") for i in having]
        frame = max(sorted(set(named)), key=named.count)
        having = [i for i, other in zip(having, named, strict=True) if other == frame]
        if len(having) < share * len(episodes):
            continue
        at = [(episodes[i], steps[i][name]) for i in having]
        world = np.array([episode.position[step] for episode, step in at])
        local = np.array([_local(episode, step, frame, axes) for episode, step in at])
        closed = np.mean([episode.closed[step] for episode, step in at])
        poses.append(
            KeyPose(
                name=name,
                frame=frame,
                position=local.mean(axis=0),
                spread=local.std(axis=0),
                world=world.mean(axis=0),
                gripper="closed" if closed > 0.5 else "open",
                opening=float(np.mean([episode.opening[step] for episode, step in at])),
                step=float(np.mean([step for _, step in at])),
                n=len(at),
            )
        )
    yield from sorted(poses, key=lambda pose: pose.step)


def _local(episode: _Episode, step: int, frame: str, axes: str) -> np.ndarray:
    position = episode.position[step]
    if frame == "world" or episode.states is None:
        return position
    state = episode.states[step]
    offset = position - np.array(state[f"{frame}_pos"])
    if axes == "frame" and f"{frame}_quat" in state:
        offset = rotation_of(state[f"{frame}_quat"]).T @ offset  # type: ignore[arg-type]
    return offset
