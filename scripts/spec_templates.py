"""
Seven sub-goal templates cover LIBERO's 40 tasks: onto an object, into a container, onto a fixture, open, turn, push, close.

The shipped specs were written with them, against the same schema and checks as the generator's answers. A template's numbers
come from the task's facts and from :mod:`sb3_tgrpo.rewards.episodes.measure`.
"""

from typing import Any

from sb3_tgrpo.rewards.episodes.measure import MeasuredGrasp, Measurements, world_box
from sb3_tgrpo.rewards.facts.helpers import distance, distance_xy, outside_xy
from sb3_tgrpo.rewards.facts.task_facts import GoalAtom, JointFacts, SiteFacts, TaskFacts, Vec3, nominal_state
from sb3_tgrpo.rewards.program.spec import DEBOUNCE_STEPS, RewardSpec

SUCCESS_POINTS = 5.0
_MARGIN = 0.025
"""Metres beyond the measured grasp distance at which an approach is over: noise and other grasps of the same object."""

Json = dict[str, Any]


def _compare(variable: Json, op: str, value: float) -> Json:
    return {"kind": "compare", "variable": variable, "op": op, "value": round(value, 3)}


def _gap(a: str, b: str, metric: str = "xyz") -> Json:
    return {"kind": "distance", "a": a, "b": b, "metric": metric}


def _goal(k: int) -> Json:
    return {"kind": "goal", "index": k}


def _stage(
    name: str,
    done: list[Json],
    *,
    requires: list[Json] | None = None,
    ladder: Json | None = None,
    pose: Json | None = None,
    hold_steps: int = 1,
) -> Json:
    return {
        "name": name,
        "points": 1.0,
        "requires": requires or [],
        "ladder": ladder,
        "pose": pose,
        "done": done,
        "hold_steps": hold_steps,
    }


def _ladder(variable: Json, op: str, thresholds: list[float]) -> Json | None:
    """Equal steps up to 0.6 points; None if no threshold is left."""
    if not thresholds:
        return None
    step = 0.6 / len(thresholds)
    rungs = [{"threshold": round(t, 3), "value": round(step * (i + 1), 3)} for i, t in enumerate(thresholds)]
    return {"variable": variable, "op": op, "rungs": rungs}


class Author:
    """Writes the spec of one task."""

    def __init__(self, facts: TaskFacts, measured: Measurements) -> None:
        self.facts, self.measured = facts, measured
        self.start = nominal_state(facts)
        self.objects = {thing.name: thing for thing in facts.objects}
        self.sites = {site.name: site for site in facts.sites}
        self.key_poses: list[Json] = []

    def spec(self) -> RewardSpec:
        """The whole spec."""
        tracks: list[Json] = []
        guards: list[Json] = []
        for k, atom in enumerate(self.facts.goal):
            if atom.true_at_start:
                guards.append({"name": f"keep_{atom.predicate}", "keep": _goal(k), "points": 1.0})
            elif atom.predicate != "close":
                tracks.append(self.track(k, atom))
        for k, atom in enumerate(self.facts.goal):
            if atom.predicate == "close":
                track = self.track(k, atom)
                track["after"] = [other["name"] for other in tracks]
                tracks.append(track)
        document = {
            "schema_version": 1,
            "task": self.facts.task_id,
            "summary": f"{self.facts.instruction[0].upper()}{self.facts.instruction[1:]}.",
            "key_poses": self.key_poses,
            "tracks": tracks,
            "guards": guards,
            "success_points": SUCCESS_POINTS,
        }
        return RewardSpec.parse(document)

    def track(self, k: int, atom: GoalAtom) -> Json:
        """The track of one goal atom."""
        thing = atom.args[0]
        if atom.predicate in ("open", "close", "turnon"):
            joint = self._joint(thing)
            name = f"{atom.predicate}_{joint.fixture}"
            return {"name": name, "goal": [k], "after": [], "stages": self.move_joint(k, atom, joint)}
        stages = self.push(k, *atom.args) if self._is_push(atom) else self.carry(k, *atom.args)
        return {"name": thing, "goal": [k], "after": [], "stages": stages}

    def _joint(self, name: str) -> JointFacts:
        joint = self.sites[name].joint if name in self.sites else ""
        return next(j for j in self.facts.joints if j.name == joint or (not joint and j.fixture == name))

    def _is_push(self, atom: GoalAtom) -> bool:
        return "push" in self.facts.name and self.objects[atom.args[0]].kind == "plate"

    # joints

    def approach_handle(self, handle: str, name: str = "approach", requires: list[Json] | None = None) -> Json:
        """Gripper to a handle or knob."""
        reach = self.measured.reaches[handle].distance
        far = distance(self._at("eef"), self._at(handle))
        thresholds = [reach + step for step in (0.15, 0.10, 0.06) if reach + step < 0.8 * far]
        return _stage(
            name,
            [_compare(_gap("eef", handle), "below", reach + _MARGIN)],
            requires=requires,
            ladder=_ladder(_gap("eef", handle), "below", thresholds),
        )

    def move_joint(self, k: int, atom: GoalAtom, joint: JointFacts) -> list[Json]:
        """Open a drawer, turn a knob, close a drawer or door."""
        handle = next(h.name for h in self.facts.handles if h.joint == joint.name)
        threshold = next(t for t in joint.thresholds if t.predicate == atom.predicate)
        variable = {"kind": "joint", "joint": joint.name}
        way = [joint.start + share * (threshold.value - joint.start) for share in (0.25, 0.5, 0.75)]
        ladder = _ladder(variable, threshold.op, way)
        verb = {"open": "pull", "close": "push", "turnon": "turn"}[atom.predicate]
        stages = [self.approach_handle(handle)]
        if atom.predicate != "close":  # a drawer may be shut with the arm, anywhere on its front
            touched = [{"kind": "touched", "name": handle}]
            stages.append(_stage("contact", touched, requires=[self._near(handle)], hold_steps=DEBOUNCE_STEPS))
        moved = _compare(variable, threshold.op, joint.start + 0.1 * (threshold.value - joint.start))
        stages.append(
            _stage(verb, [_goal(k)], requires=[{"kind": "any_of", "conditions": [self._near(handle), moved]}], ladder=ladder)
        )
        return stages

    def _near(self, handle: str) -> Json:
        return _compare(_gap("eef", handle), "below", self.measured.reaches[handle].distance + 0.06)

    def open_first(self, site: SiteFacts) -> list[Json]:
        """The implicit sub-goal of putting something into a closed drawer."""
        joint = self._joint(site.name)
        opened = next(t for t in joint.thresholds if t.predicate == "open")
        if (joint.start < opened.value + 0.02) == (opened.op == "below"):
            return []
        handle = next(h.name for h in self.facts.handles if h.joint == joint.name)
        variable = {"kind": "joint", "joint": joint.name}
        way = [joint.start + share * (opened.value - joint.start) for share in (0.25, 0.5)]
        return [
            self.approach_handle(handle, "reach_handle"),
            _stage("contact", [{"kind": "touched", "name": handle}], requires=[self._near(handle)], hold_steps=DEBOUNCE_STEPS),
            _stage(
                "pull",
                [_compare(variable, opened.op, joint.start + 0.75 * (opened.value - joint.start))],
                requires=[self._near(handle)],
                ladder=_ladder(variable, opened.op, way),
            ),
        ]

    # objects

    def _at(self, name: str) -> Vec3:
        return self.start[f"{name}_pos"]  # type: ignore[return-value]

    def approach(self, thing: str, requires: list[Json]) -> Json:
        """Gripper to where the object is grasped; the key pose is over its middle, so that any side of a rim will do."""
        grasp = self.measured.grasps[thing]
        pose = f"grasp_{thing}"
        offset = {"x": 0.0, "y": 0.0, "z": round(grasp.height, 3)}
        self.key_poses.append({"name": pose, "frame": thing, "axes": "world", "offset": offset})
        x, y, z = self._at(thing)
        far = distance(self._at("eef"), (x, y, z + grasp.height))
        thresholds = [grasp.radius + step for step in (0.15, 0.10, 0.06) if grasp.radius + step < 0.8 * far]
        return _stage(
            "approach",
            [_compare(_gap("eef", pose), "below", grasp.radius + _MARGIN)],
            requires=requires,
            ladder=_ladder(_gap("eef", pose), "below", thresholds),
            pose={"key_pose": pose, "reach": round(min(0.25, 0.8 * far), 3), "weight": 0.2},
        )

    def carry(self, k: int, thing: str, target: str) -> list[Json]:
        """MeasuredGrasp, lift, move over the target, lower until the goal holds."""
        site = self.sites.get(target)
        opening = self.open_first(site) if site and site.joint else []
        drawer: list[Json] = []
        if opening:
            joint = self._joint(target)
            opened = next(t for t in joint.thresholds if t.predicate == "open")
            drawer = [_compare({"kind": "joint", "joint": joint.name}, opened.op, 0.5 * (joint.start + opened.value))]
        grasp = self.measured.grasps[thing]
        held = {"kind": "grasped", "object": thing}
        near = _compare(_gap("eef", f"grasp_{thing}"), "below", grasp.radius + 0.06)
        rise = {"kind": "rise", "object": thing}
        lift = self._lift(thing, grasp)
        over, ladder, still_over = self._over(thing, target, self.facts.goal[k].predicate)
        return [
            *opening,
            self.approach(thing, drawer),
            _stage("grasp", [held], requires=[near, *drawer], hold_steps=DEBOUNCE_STEPS),
            _stage(
                "lift",
                [_compare(rise, "above", lift)],
                requires=[held],
                ladder=_ladder(rise, "above", [0.25 * lift, 0.6 * lift]),
            ),
            _stage("move", [over], requires=[held], ladder=ladder, pose=self._place_pose(k, thing, target)),
            _stage(
                "place",
                [_goal(k)],
                requires=[{"kind": "any_of", "conditions": [held, still_over]}],
                ladder=self._lower(k, thing, target),
            ),
        ]

    def _lift(self, thing: str, grasp: MeasuredGrasp) -> float:
        return min(0.08, 0.7 * grasp.lift) if grasp.episodes else 0.05

    def _over(self, thing: str, target: str, predicate: str) -> tuple[Json, Json | None, Json]:
        """When the object is over its place; the ladder to there; when a dropped object is still over it."""
        site = self.sites.get(target)
        if site is not None and self._is_box(site):
            variable: Json = {"kind": "outside", "point": thing, "site": target, "axes": "xy"}
            away = outside_xy(self._at(thing), site.start_pos, site.start_quat, site.half_size)
            # What goes in from the front is inside, and the goal holds, as soon as it is over the region.
            done = 0.05 if "microwave" in site.parent else -0.005
        else:
            variable = _gap(thing, target, "xy")
            away = distance_xy(self._at(thing), self._at(target))
            done = 0.035 if site is None else 0.05  # the strip that a tilted rack accepts begins off its centre
        thresholds = [share * away for share in (0.65, 0.4, 0.2) if share * away > done + 0.02]
        return (
            _compare(variable, "below", done),
            _ladder(variable, "below", thresholds),
            _compare(variable, "below", done + 0.03),
        )

    def _is_box(self, site: SiteFacts) -> bool:
        """Not a tilted rack, whose strip of accepted positions is no box in the world."""
        return "rack" not in site.name

    def _place_pose(self, k: int, thing: str, target: str) -> Json:
        release = self.measured.releases.get(k)
        x, y, z = release.offset if release else (0.0, 0.0, self.measured.grasps[thing].height + 0.08)
        name = f"place_{thing}"
        offset = {"x": round(x, 3), "y": round(y, 3), "z": round(z, 3)}
        self.key_poses.append({"name": name, "frame": target, "axes": "world", "offset": offset})
        tx, ty, tz = self._at(target)
        gx, gy, gz = self._at(thing)
        pose_at, grasp_at = (tx + x, ty + y, tz + z), (gx, gy, gz + self.measured.grasps[thing].height)
        # Reaches back past where the object is lifted, so that every centimetre of the way counts.
        reach = min(0.6, max(0.15, 1.5 * distance(pose_at, grasp_at)))
        return {"key_pose": name, "reach": round(reach, 3), "weight": 0.2}

    def _lower(self, k: int, thing: str, target: str) -> Json | None:
        """Height of the object over its place, down to a little over where the goal was reached."""
        release = self.measured.releases.get(k)
        lo, _ = world_box(self.objects[thing])
        height = release.height if release else -lo[2] + 0.03
        return _ladder({"kind": "height", "a": thing, "b": target}, "below", [height + 0.08, height + 0.04, height + 0.015])

    def push(self, k: int, thing: str, target: str) -> list[Json]:
        """Slide an object over the table to a zone."""
        lo, hi = world_box(self.objects[thing])
        radius = 0.25 * (hi[0] - lo[0] + hi[1] - lo[1])
        approach = self.approach(thing, [])
        near = _compare(_gap("eef", f"grasp_{thing}"), "below", radius + 0.12)
        away = distance_xy(self._at(thing), self._at(target))
        thresholds = [share * away for share in (0.8, 0.6, 0.4)]
        return [
            approach,
            _stage("contact", [{"kind": "touched", "name": thing}], requires=[near], hold_steps=DEBOUNCE_STEPS),
            _stage("push", [_goal(k)], requires=[near], ladder=_ladder(_gap(thing, target, "xy"), "below", thresholds)),
        ]


def write_spec(facts: TaskFacts, measured: Measurements) -> RewardSpec:
    """The spec of a task from templates."""
    return Author(facts, measured).spec()
