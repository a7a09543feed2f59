"""
A spec as readable Python.

The text is what a reviewer reads and what :meth:`RewardProgram.from_python` accepts; what runs is the spec, compiled by
:mod:`sb3_tgrpo.rewards.program.compile`. A test on recorded episodes holds the two equal, bit by bit.
"""

from collections.abc import Sequence
from typing import Any

from sb3_tgrpo.rewards.facts.task_facts import TaskFacts
from sb3_tgrpo.rewards.program import spec as s


class _Printer:
    def __init__(self, spec: s.RewardSpec, facts: TaskFacts) -> None:
        self.spec, self.facts = spec, facts
        self.poses = {pose.name for pose in spec.key_poses}
        self.half_sizes = {site.name: site.half_size for site in facts.sites}
        self.lines: list[str] = []

    def put(self, indent: int, *lines: str) -> None:
        self.lines += ["    " * indent + line if line else "" for line in lines]

    def point(self, name: str) -> str:
        return f"pose_{name}" if name in self.poses else f'state["{name}_pos"]'

    def variable(self, v: Any) -> str:
        if isinstance(v, s.Distance):
            if v.metric == "z":
                return f"abs({self.point(v.a)}[2] - {self.point(v.b)}[2])"
            return f"{'distance' if v.metric == 'xyz' else 'distance_xy'}({self.point(v.a)}, {self.point(v.b)})"
        if isinstance(v, s.Height):
            return f"{self.point(v.a)}[2] - {self.point(v.b)}[2]"
        if isinstance(v, s.Rise):
            return f'state["{v.object}_pos"][2] - info["start_{v.object}_pos"][2]'
        if isinstance(v, s.Outside):
            x, y, z = self.half_sizes[v.site]
            place = f'state["{v.site}_pos"], state["{v.site}_quat"], vec3({x!r}, {y!r}, {z!r})'
            return f"{'outside' if v.axes == 'xyz' else 'outside_xy'}({self.point(v.point)}, {place})"
        if isinstance(v, s.Tilt):
            return f'tilt(state["{v.entity}_quat"])'
        return f'state["{v.joint}_qpos"]' if isinstance(v, s.Joint) else 'state["gripper_opening"]'

    def condition(self, c: Any) -> str:
        if isinstance(c, s.AnyOf):
            return f"({' or '.join(map(self.condition, c.conditions))})"
        if isinstance(c, s.Compare):
            return f"{self.variable(c.variable)} {'<' if c.op == 'below' else '>'} {c.value!r}"
        if isinstance(c, s.Released):
            return f'not (state["{c.object}_left_pad"] or state["{c.object}_right_pad"])'
        if isinstance(c, s.Grasped):
            return f'state["{c.object}_grasped"]'
        return f'state["goal_{c.index}"]' if isinstance(c, s.Goal) else f'state["{c.name}_touched"]'

    def all(self, conditions: Sequence[Any]) -> str:
        return " and ".join(map(self.condition, conditions))

    def program(self) -> str:
        spec = self.spec
        self.put(0, "def compute_reward(state, info):")
        self.put(1, f'"""{self.spec.summary}', "", "Returns the level, f1 (stages) + f2 (nearness to key poses).")
        for track in spec.tracks:
            stages = ", ".join(f"{stage.name} ({stage.points:g})" for stage in track.stages)
            self.put(1, f"{track.name}: {stages}.")
        self.put(1, '"""')
        self.put(
            1, f"n_stages = {spec.n_stages}", f"max_level = {spec.max_level!r}", f"success_reward = {spec.success_points!r}"
        )
        if spec.key_poses:
            self.put(1, "", "# key poses of successful demonstrations")
        for pose in spec.key_poses:
            offset = f"vec3({pose.offset.x!r}, {pose.offset.y!r}, {pose.offset.z!r})"
            turned = offset if pose.axes == "world" else f'rotate(state["{pose.frame}_quat"], {offset})'
            self.put(1, f'pose_{pose.name} = add(state["{pose.frame}_pos"], {turned})')
        self.put(1, "", "stages = 0.0", "shaping = 0.0")
        for track in spec.tracks:
            self.track(track)
        self.guards()
        done = " + ".join(f"memory_{track.name}_at" for track in spec.tracks)
        self.put(1, "", f"stage = {done}", "return stages + shaping")
        return "\n".join(self.lines) + "\n"

    def track(self, track: s.Track) -> None:
        n, m = len(track.stages), f"memory_{track.name}"
        names = ", ".join(f"{i} {stage.name}" for i, stage in enumerate(track.stages))
        self.put(1, "", f"# {track.name}: {names}, {n} complete")
        self.put(1, *(f'{m}_{part} = info["{m}_{part}"]' for part in ("at", "held", "lost")))
        indent = 1
        if track.after:
            sizes = {other.name: len(other.stages) for other in self.spec.tracks}
            waiting = " or ".join(f"memory_{name}_at < {sizes[name]}" for name in track.after)
            self.put(1, f"if {waiting}:")
            self.put(2, f"{m}_at = 0", f"{m}_held = 0", f"{m}_lost = 0")
            self.put(1, "else:")
            indent = 2
        goal = " and ".join(f'state["goal_{k}"]' for k in track.goal)
        self.put(indent, f"if {goal}:")
        self.put(indent + 1, f"{m}_at = {n}", f"{m}_held = 0", f"{m}_lost = 0")
        self.put(indent, "else:")
        self.machine(track, indent + 1)
        self.pay(track, indent)

    def machine(self, track: s.Track, indent: int) -> None:
        n, m = len(track.stages), f"memory_{track.name}"
        self.put(indent, f"kept = {m}_at < {n}")
        for j, stage in enumerate(track.stages):
            if stage.requires:
                self.put(indent, f"if {m}_at == {j}:")
                self.put(indent + 1, f"kept = {self.all(stage.requires)}")
        self.put(indent, f"{m}_lost = 0 if kept else {m}_lost + 1", f"if {m}_lost >= {s.DEBOUNCE_STEPS}:")
        self.put(indent + 1, "# fall back to the last stage that is still possible", f"{m}_at = max({m}_at - 1, 0)")
        for j in reversed(range(1, n)):
            if track.stages[j].requires:
                self.put(indent + 1, f"if {m}_at == {j} and not ({self.all(track.stages[j].requires)}):")
                self.put(indent + 2, f"{m}_at = {j - 1}")
        self.put(indent + 1, f"{m}_held = 0", f"{m}_lost = 0", "kept = True")
        if n == 1:
            return
        self.put(indent, "done = False", "needed = 1")
        for j, stage in enumerate(track.stages[:-1]):
            self.put(indent, f"{'if' if j == 0 else 'elif'} {m}_at == {j}:")
            self.put(indent + 1, f"done = kept and {self.all(stage.done)}")
            if stage.hold_steps != 1:
                self.put(indent + 1, f"needed = {stage.hold_steps}")
        self.put(indent, f"if {m}_at < {n - 1}:")
        self.put(indent + 1, f"{m}_held = {m}_held + 1 if done else 0", f"if {m}_held >= needed:")
        self.put(indent + 2, f"{m}_at = {m}_at + 1", f"{m}_held = 0", f"{m}_lost = 0")

    def pay(self, track: s.Track, indent: int) -> None:
        m, base = f"memory_{track.name}", 0.0
        for j, stage in enumerate(track.stages):
            self.put(indent, f"{'if' if j == 0 else 'elif'} {m}_at == {j}:")
            at = len(self.lines)
            if base:
                self.put(indent + 1, f"stages += {base!r}")
            if stage.ladder is not None:
                ladder = stage.ladder
                rungs = ", ".join(f"{rung.threshold!r}, {rung.value!r}" for rung in ladder.rungs)
                self.put(indent + 1, f"stages += ladder_{ladder.op}({self.variable(ladder.variable)}, {rungs})")
            if stage.pose is not None:
                nearness = f'closeness(distance(state["eef_pos"], {self.point(stage.pose.key_pose)}), {stage.pose.reach!r})'
                self.put(indent + 1, f"shaping += {stage.pose.weight!r} * {nearness}")
            if len(self.lines) == at:
                self.put(indent + 1, "stages += 0.0")
            base += stage.points
        self.put(indent, "else:")
        self.put(indent + 1, f"stages += {base!r}")

    def guards(self) -> None:
        for guard in self.spec.guards:
            self.put(1, "", f"# {guard.name}", f"if not ({self.condition(guard.keep)}):")
            self.put(2, f"stages -= {guard.points!r}")


def spec_to_python(spec: s.RewardSpec, facts: TaskFacts) -> str:
    """Source of ``compute_reward(state, info)`` for a checked spec."""
    return _Printer(spec, facts).program()
