"""Which skill works on which atom of a goal."""

import numpy as np

from sb3_tgrpo.envs.expert_place import Place
from sb3_tgrpo.envs.experts import Skill
from sb3_tgrpo.rewards.task_facts import TaskFacts


def make_skill(facts: TaskFacts, k: int, rng: np.random.Generator, detour: float) -> Skill:
    """
    :param k: index of the atom.
    :param rng: source of the episode's variation.
    :param detour: how much it varies, metres.
    :raises ValueError: if no skill works on such an atom.
    """
    atom = facts.goal[k]
    if atom.predicate in ("in", "on"):
        return Place(facts, k, rng, detour)
    raise ValueError(f"{facts.task_id}: no skill works on {atom.predicate} {' '.join(atom.args)}.")
