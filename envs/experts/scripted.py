"""
Scripted experts: controllers that solve LIBERO tasks from the facts of the current state, through the ordinary action space.

A task's goal is a conjunction of atoms; each kind of atom has one skill (:mod:`~sb3_tgrpo.envs.experts.place`,
:mod:`~sb3_tgrpo.envs.experts.fixtures`) and the expert works on the first atom that does not hold. What a skill does follows
from the current state, so that it carries on after a perturbation, a dropped object or a start in the middle of the task.
"""

from dataclasses import replace

import numpy as np

from sb3_tgrpo.envs.experts.motion import (
    OPEN,
    ActionNoise,
    Command,
    Skill,
    Vector,
    action_towards,
    gripper_down,
    lean,
    rotation_of,
)
from sb3_tgrpo.envs.experts.skills import make_skill
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts
from sb3_tgrpo.rewards.facts.vocabulary import State


class ScriptedExpert:
    """
    Solves one LIBERO task.

    Example::

        env = LiberoEnv("libero_object", 3, observations=())
        expert = ScriptedExpert("libero_object-3", seed=0)
        env.reset(seed=0)
        while True:
            _, _, terminated, truncated, _ = env.step(expert.act(env.facts()))
            if terminated or truncated:
                break

    :param task: ``"libero_object-3"``, a gym id, or task facts.
    :param noise: Standard deviation of a trembling of the motion, in action units (first-order autoregressive, 0.7).
    :param detour: Metres by which ways vary from episode to episode: side steps, heights, where an object is held and put.
    :param seed: Seed of everything random; the same seed gives the same episode.
    :raises ValueError: If the task is unknown, or has an atom that no skill works on.
    """

    def __init__(self, task: str | TaskFacts, *, noise: float = 0.0, detour: float = 0.0, seed: int | None = None) -> None:
        if not 0 <= detour <= 0.2:
            raise ValueError(f"detour must be between 0 and 0.2 metres, got {detour!r}.")
        self.task_facts = load_task_facts(task) if isinstance(task, str) else task
        self.detour = float(detour)
        self.noise = float(noise)
        self.reset(seed)

    def reset(self, seed: int | None = None) -> None:
        """Prepare for a new episode; ``seed`` decides its variation."""
        rng = np.random.default_rng(seed)
        self._noise = ActionNoise(self.noise, rng)
        facts = self.task_facts
        rank = {"turnon": 0, "close": 2}  # turning on comes first, closing last
        order = sorted(range(len(facts.goal)), key=lambda k: rank.get(facts.goal[k].predicate, 1))
        self._skills: list[tuple[int, Skill]] = [(k, make_skill(facts, k, rng, self.detour)) for k in order]
        self.stage = "start"

    def act(self, state: State) -> Vector:
        """The action, float32 (7,) in [-1, 1], in a state from ``LiberoEnv.facts()``."""
        command = self.command(state)
        rotation = lean(command.position, np.array(self.task_facts.eef_start_pos)) @ command.rotation
        eef = np.array(state["eef_pos"]), rotation_of(state["eef_quat"])  # type: ignore[arg-type]
        action = action_towards(replace(command, rotation=rotation), *eef)
        return self._noise(action) if self.noise > 0 else action

    def command(self, state: State) -> Command:
        """Where the gripper is to go now, before any noise."""
        for k, skill in self._skills:
            if not state[f"goal_{k}"] or not skill.finished(state):
                command = skill.command(state)
                self.stage = f"{skill.stage} {self.task_facts.goal[k].args[0]}"
                return command
        self.stage = "done"
        return Command(np.array(state["eef_pos"]), gripper_down(0.0), OPEN)
