"""Which skill works on which atom of a goal."""

from collections.abc import Callable

import numpy as np

from sb3_tgrpo.envs.experts.fixtures import CloseDrawer, OpenDrawer, Push, TurnKnob
from sb3_tgrpo.envs.experts.motion import Command, Skill
from sb3_tgrpo.envs.experts.place import Place
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts
from sb3_tgrpo.rewards.facts.vocabulary import State

PUSHED: tuple[str, ...] = ("plate",)
"""Kinds of objects that are pushed over the table instead of carried."""


def make_skill(facts: TaskFacts, k: int, rng: np.random.Generator, detour: float) -> Skill:
    """The skill that works on atom ``k``, varied by up to ``detour`` metres; ValueError if there is none."""
    atom = facts.goal[k]
    if atom.predicate in ("in", "on"):
        site = next((site for site in facts.sites if site.name == atom.args[-1]), None)
        flat = next(thing for thing in facts.objects if thing.name == atom.args[0]).kind in PUSHED
        if flat and site is not None and not site.parent:
            return Push(facts, k, rng, detour)
        place = Place(facts, k, rng, detour)
        if site is not None and site.joint:
            return OpenFirst(OpenDrawer(facts, k, rng, detour), place)
        return place
    skills: dict[str, Callable[..., Skill]] = {"turnon": TurnKnob, "open": OpenDrawer, "close": CloseDrawer}
    if atom.predicate in skills:
        return skills[atom.predicate](facts, k, rng, detour)
    raise ValueError(f"{facts.task_id}: no skill works on {atom.predicate} {' '.join(atom.args)}.")


class OpenFirst:
    """Put something into a drawer: open it before, should it be shut."""

    def __init__(self, opening: OpenDrawer, then: Skill) -> None:
        self._opening, self._then = opening, then
        self._ready = False
        self.stage = opening.stage

    def finished(self, state: State) -> bool:
        """As the second part."""
        return self._then.finished(state)

    def command(self, state: State) -> Command:
        if not self._ready or (self._then.stage == "approach" and self._opening.shut(state)):
            self._ready = self._opening.ready(state)
        skill = self._then if self._ready else self._opening
        command = skill.command(state)
        self.stage = skill.stage
        return command
