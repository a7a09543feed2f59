"""What a hand that goes where it is told does about a goal: for :class:`~sb3_tgrpo.envs.placed_hand.PlacedHandEnv`."""

from collections.abc import Generator

import numpy as np

from sb3_tgrpo.envs.expert_fixtures import handle_of, opening_direction
from sb3_tgrpo.envs.expert_grasps import box_of, choose_grasp, heights, pose
from sb3_tgrpo.envs.expert_motion import CLOSE, OPEN, Command, Vector, finger_yaw, gripper_down, lean, rotation_of
from sb3_tgrpo.envs.expert_skills import PUSHED
from sb3_tgrpo.envs.placed_hand import PlacedHandEnv, placed_action
from sb3_tgrpo.rewards.task_facts import JointFacts, SiteFacts, TaskFacts
from sb3_tgrpo.rewards.vocabulary import State

Moves = Generator[tuple[Command, str], None, None]

_ABOVE, _CLEAR = 0.10, 0.08
_UP = np.array([0.0, 0.0, 1.0])
_SETTLE = 12


class Plan:
    """
    Reaches the goal's atoms one after the other, closing last. Call it with a state to get an action and what it is for.

    :param env: where it acts; for the axes of hinges.
    :param facts: the task.
    :param seed: of the choice of grasps.
    :param spread: how much they vary, metres.
    """

    def __init__(self, env: PlacedHandEnv, facts: TaskFacts, seed: int, spread: float = 0.0) -> None:
        self.env, self.facts = env, facts
        self._rng, self._spread = np.random.default_rng(seed), spread
        self._start = np.array(facts.eef_start_pos)
        self._about = ""
        self.state: State = {}
        self._moves = self._everything()

    def __call__(self, state: State, _step: int) -> tuple[np.ndarray, str]:
        """:return: the action, (7,), and the name of the stage."""
        self.state = state
        command, stage = next(self._moves)
        return placed_action(command, state), f"{stage} {self._about}"

    # ------------------------------------------------------------------ parts

    @property
    def _eef(self) -> Vector:
        return np.array(self.state["eef_pos"])

    def _at(self, name: str) -> Vector:
        return np.array(self.state[f"{name}_pos"])

    def _go(self, to: Vector, rotation: Vector, grip: float, stage: str, speed: float = 1.0, steps: int = 70) -> Moves:
        for _ in range(steps):
            turned = float(np.trace(rotation.T @ rotation_of(self.state["eef_quat"])))  # type: ignore[arg-type]
            if np.linalg.norm(to - self._eef) < 0.003 and turned > 2.97:
                return
            yield Command(to, rotation, grip, speed), stage

    def _stay(self, steps: int, rotation: Vector, grip: float, stage: str) -> Moves:
        at = self._eef
        for _ in range(steps):
            yield Command(at, rotation, grip), stage

    def _everything(self) -> Moves:
        goal = self.facts.goal
        order = sorted(
            (k for k, atom in enumerate(goal) if not atom.true_at_start), key=lambda k: goal[k].predicate == "close"
        )
        for k in order:
            predicate, args = goal[k].predicate, goal[k].args
            self._about = args[0]
            if predicate in ("open", "close", "turnon"):
                yield from self._joint(k, predicate, args[0])
                continue
            site = next((site for site in self.facts.sites if site.name == args[1]), None)
            kind = next(thing.kind for thing in self.facts.objects if thing.name == args[0])
            if site is not None and not site.parent and kind in PUSHED:
                yield from self._slide(args[0], args[1])
                continue
            if site is not None and site.joint:
                yield from self._open_first(site)
            yield from self._carry(k, args[0], args[1], site)
        while True:
            rotation = rotation_of(self.state["eef_quat"])  # type: ignore[arg-type]
            yield Command(self._eef, rotation, OPEN), "wait"

    # ------------------------------------------------------------------ objects

    def _grasp(self, name: str, target: str, higher: float = 0.0) -> Generator[tuple[Command, str], None, Vector]:
        """
        :param higher: than an arm that gives way would hold it, metres.
        :return: the hand's rotation.
        """
        thing = next(thing for thing in self.facts.objects if thing.name == name)
        pos, rotation = pose(self.state, name)
        grasp = choose_grasp(self.state, self.facts, thing, self._rng, self._spread, (), self._at(target) - pos)
        point, yaw = grasp.place(pos, rotation, 0.0)
        point = point + higher * _UP
        hand = lean(point, self._start) @ gripper_down(yaw)
        yield from self._go(point + _ABOVE * _UP, hand, OPEN, "approach")
        yield from self._go(point, hand, OPEN, "approach")
        yield from self._stay(_SETTLE, hand, CLOSE, "grasp")
        return hand

    def _carry(self, k: int, name: str, target: str, site: SiteFacts | None) -> Moves:
        thing = next(thing for thing in self.facts.objects if thing.name == name)
        hand = yield from self._grasp(name, target)
        pos, rotation = pose(self.state, name)
        below, _ = heights(thing, rotation)
        aim, way = self._place_of(k, target, site, -below)
        high = max(float(pos[2]) + 0.05, float((aim + way)[2]) + 0.02, self._at(target)[2] - below + _CLEAR)
        yield from self._bring(name, np.array([*pos[:2], high]), hand, "lift", 0.6)
        if abs(way[2]) < 1e-6:  # in from the front: there at its own height
            yield from self._bring(name, np.array([*(aim + way)[:2], high]), hand, "move")
            yield from self._bring(name, aim + way, hand, "move")
        else:
            yield from self._bring(name, np.array([*aim[:2], high]), hand, "move")
        yield from self._bring(name, aim, hand, "lower", 0.5)
        yield from self._stay(_SETTLE, hand, OPEN, "release")
        yield from self._go(self._eef + _ABOVE * _UP, hand, OPEN, "release")
        if abs(way[2]) < 1e-6:
            yield from self._go(self._eef + way, hand, OPEN, "release")

    def _bring(self, name: str, to: Vector, hand: Vector, stage: str, speed: float = 1.0) -> Moves:
        """Moves the hand so that the object's origin gets there."""
        for _ in range(90):
            error = to - self._at(name)
            if np.linalg.norm(error) < 0.004:
                return
            yield Command(self._eef + error, hand, CLOSE, speed), stage

    def _place_of(self, k: int, target: str, site: SiteFacts | None, below: float) -> tuple[Vector, Vector]:
        """Where the object's origin is let go, and from where it comes, relative to that."""
        pos, rotation = pose(self.state, target)
        if site is None:
            thing = next(thing for thing in self.facts.objects if thing.name == target)
            return pos + (heights(thing, rotation)[1] + below + 0.008) * _UP, _CLEAR * _UP
        half = float(np.abs(rotation[2]) @ np.array(site.half_size))
        if self.facts.goal[k].predicate == "on":
            return pos + (half + below + 0.006) * _UP + self._share(k), _CLEAR * _UP
        fixture = next((fixture for fixture in self.facts.fixtures if fixture.name == site.parent), None)
        if fixture is not None and fixture.kind == "microwave":
            front = -rotation_of(fixture.start_quat)[:, 1]
            inside = pos + 0.03 * front - 0.025 * rotation_of(fixture.start_quat)[:, 0]  # its right side is thick
            return inside + (0.025 - half + below) * _UP, 0.30 * front
        aim = pos + (half + 0.015) * _UP
        if site.joint:  # an open drawer is partly under its cabinet
            aim += 0.035 * opening_direction(self.facts, handle_of(self.facts, site.name)[0])
        return aim, _CLEAR * _UP

    def _share(self, k: int) -> Vector:
        """Several things on one region stand beside each other, along the narrow side of the first."""
        goal = self.facts.goal
        sharing = [j for j, atom in enumerate(goal) if atom.predicate == "on" and atom.args[1:] == goal[k].args[1:]]
        if len(sharing) < 2:
            return np.zeros(3)
        thing = next(thing for thing in self.facts.objects if thing.name == goal[sharing[0]].args[0])
        half = box_of(thing)[1]
        narrow = int(np.argmin(half[:2]))
        place = sharing.index(k) - (len(sharing) - 1) / 2
        return rotation_of(thing.start_quat)[:, narrow] * place * (2 * half[narrow] + 0.008)

    def _slide(self, name: str, target: str) -> Moves:
        """Over the table, held by the rim: behind the plate, LIBERO's cabinet leaves no room for a hand that pushes."""
        hand = yield from self._grasp(name, target, higher=0.008)
        to = self._at(target)
        yield from self._bring(name, np.array([*to[:2], self._at(name)[2] + 0.004]), hand, "push", 0.6)

    # ------------------------------------------------------------------ drawers and doors

    def _open_first(self, site: SiteFacts) -> Moves:
        _, joint = handle_of(self.facts, site.name)
        opened = next(threshold for threshold in joint.thresholds if threshold.predicate == "open")
        if abs(joint.start - opened.value) > 0.02:
            yield from self._pull(joint, site.name, opened.value - 0.008)

    def _pull(self, joint: JointFacts, name: str, until: float) -> Moves:
        handle, _ = handle_of(self.facts, name)
        about, self._about = self._about, name
        out = opening_direction(self.facts, handle)
        hand = np.stack([np.cross(_UP, -out), _UP, -out], axis=1)  # lying, one finger over the bar and one under it
        yield from self._go(self._at(handle.name) + _ABOVE * out, hand, OPEN, "approach")
        yield from self._go(self._at(handle.name), hand, OPEN, "approach")
        yield from self._stay(8, hand, CLOSE, "grasp")
        for _ in range(60):
            if float(self.state[f"{joint.name}_qpos"]) < until:  # type: ignore[arg-type]
                break
            yield Command(self._eef + 0.01 * out, hand, CLOSE), "pull"
        yield from self._stay(4, hand, OPEN, "release")
        yield from self._go(self._eef + _ABOVE * out, hand, OPEN, "release")
        yield from self._go(self._eef + 0.15 * _UP, hand, OPEN, "release")
        self._about = about

    def _joint(self, k: int, predicate: str, name: str) -> Moves:
        handle, joint = handle_of(self.facts, name)
        threshold = next(threshold for threshold in joint.thresholds if threshold.predicate == predicate)
        if predicate == "open":
            yield from self._pull(joint, name, threshold.value)
            return
        sign = 1.0 if threshold.op == "above" else -1.0

        def onward() -> Vector:
            if joint.type == "slide":
                return -sign * opening_direction(self.facts, handle)
            anchor, axis = self.env.data.joint(joint.name).xanchor, self.env.data.joint(joint.name).xaxis
            way = sign * np.cross(axis, self._at(handle.name) - anchor)
            return way / max(float(np.linalg.norm(way)), 1e-9)

        way = onward()
        hand = gripper_down(finger_yaw(np.cross(way, _UP)))
        above = self._at(handle.name) - 0.08 * way + 0.20 * _UP
        yield from self._go(np.array([*self._eef[:2], max(above[2], self._eef[2])]), hand, CLOSE, "approach")
        yield from self._go(above, hand, CLOSE, "approach")
        yield from self._go(self._at(handle.name) - 0.08 * way, hand, CLOSE, "approach")
        for _ in range(150):
            if self.state[f"goal_{k}"]:
                return
            way = onward()
            hand = gripper_down(finger_yaw(np.cross(way, _UP), finger_yaw(hand[:, 1])))
            yield Command(self._at(handle.name) + 0.02 * way, hand, CLOSE, 0.6), "push"
