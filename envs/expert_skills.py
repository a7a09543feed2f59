"""Which skill works on which atom of a goal."""

import numpy as np

from sb3_tgrpo.envs.expert_fixtures import CloseDrawer, OpenDrawer, Push, TurnKnob
from sb3_tgrpo.envs.expert_place import Place
from sb3_tgrpo.envs.experts import Skill
from sb3_tgrpo.rewards.task_facts import TaskFacts

PUSHED: tuple[str, ...] = ("plate",)
"""Kinds of objects that are pushed over the table instead of carried."""


def make_skill(facts: TaskFacts, k: int, rng: np.random.Generator, detour: float) -> Skill:
    """
    :param k: index of the atom.
    :param rng: source of the episode's variation.
    :param detour: how much it varies, metres.
    :raises ValueError: if no skill works on such an atom.
    """
    atom = facts.goal[k]
    if atom.predicate in ("in", "on"):
        site = next((site for site in facts.sites if site.name == atom.args[-1]), None)
        flat = next(thing for thing in facts.objects if thing.name == atom.args[0]).kind in PUSHED
        if flat and site is not None and not site.parent:
            return Push(facts, k, rng, detour)
        return Place(facts, k, rng, detour)
    if atom.predicate == "turnon":
        return TurnKnob(facts, k, rng, detour)
    if atom.predicate == "open":
        return OpenDrawer(facts, k, rng, detour)
    if atom.predicate == "close":
        return CloseDrawer(facts, k, rng, detour)
    raise ValueError(f"{facts.task_id}: no skill works on {atom.predicate} {' '.join(atom.args)}.")
