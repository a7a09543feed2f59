"""
Tasks that differ in nothing but what is asked for: the same scene, another target object, and the instruction that names it.

In LIBERO-Object each task has a scene of its own, so that a policy can do without reading. In the scene of ``libero_object-8``
stand, besides the chocolate pudding, five other objects that fit into the basket: with ``LiberoEnv("libero_object", 8,
target="ketchup")`` the goal and the sentence are about one of these, and everything else, initial states included, is the same
bit for bit.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sb3_tgrpo.envs.libero.tasks import LiberoTask, instruction_of
from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts

_NAME = r"([^\s()]+)"
_GOAL = re.compile(rf"\(:goal\s*\(\s*and\s*\(\s*{_NAME}\s+{_NAME}\s+{_NAME}\s*\)\s*\)\s*\)", re.IGNORECASE)
_OBJECTS = re.compile(r"\(:objects\s[^()]*\)")
_INTEREST = re.compile(r"\(:obj_of_interest\s[^()]*\)")
_LANGUAGE = re.compile(r"\(:language\s[^()]*\)")


def available_targets(task: LiberoTask) -> tuple[str, ...]:
    """
    The objects that can be asked for instead of a task's own target, and that one itself.

    :param task: A task that puts one object into or onto something.
    :return: Kinds of objects, such as ``ketchup``, in the BDDL file's order.
    :raises ValueError: If the goal is another.
    """
    text = task.read_bddl()
    _, place = _goal(text, task.name)
    return tuple(_choices(_objects(text), place))


def target_variant(task: LiberoTask, target: str) -> LiberoTask:
    """
    The same scene with another target: instruction, ``:obj_of_interest`` and goal change, nothing else. The stored initial
    states of the task are valid for the variant as well.

    :param task: A task that puts one object into or onto something, and names it in its sentence.
    :param target: Object to ask for, such as ``"ketchup"`` or ``"ketchup_1"``.
    :return: The variant; the task itself if it is its own target.
    :raises ValueError: If the scene holds no such object, naming those it holds, or if the task is of another kind.
    """
    text = task.read_bddl()
    old, place = _goal(text, task.name)
    kinds = _objects(text)
    new = _chosen(kinds, place, target, task.name)
    if new == old:
        return task
    words = _spaced(kinds[old]), _spaced(kinds[new])
    name = _swapped(task.name, kinds[old], kinds[new], task.name)
    for pattern, before, after in ((_GOAL, old, new), (_INTEREST, old, new), (_LANGUAGE, *words)):
        found = pattern.search(text)
        if found is not None:
            text = text[: found.start()] + _swapped(found[0], before, after, task.name) + text[found.end() :]
    return replace(task, name=name, instruction=instruction_of(name), bddl_text=text)


def write_target_variant(task: LiberoTask, target: str, folder: str | os.PathLike[str]) -> Path:
    """
    Write the BDDL file of a :func:`target_variant`, to look at or to change further; :meth:`LiberoEnv.from_bddl` reads it.

    :param folder: Folder, made if needed. The file's name is the instruction, as in LIBERO.
    :return: The file.
    """
    variant = target_variant(task, target)
    return atomic_write(Path(folder) / f"{variant.name}.bddl", variant.read_bddl())


def target_facts(facts: TaskFacts, target: str) -> TaskFacts:
    """The facts of a :func:`target_variant`, from the task's facts, for an expert."""
    if len(facts.goal) != 1 or len(facts.goal[0].args) != 2:
        raise ValueError(_other_goal(facts.task_id))
    atom = facts.goal[0]
    old, place = atom.args
    kinds = {thing.name: thing.kind for thing in facts.objects}
    new = _chosen(kinds, place, target, facts.task_id)
    if new == old:
        return facts
    name = _swapped(facts.name, kinds[old], kinds[new], facts.task_id)
    return replace(
        facts,
        name=name,
        instruction=instruction_of(name),
        bddl_instruction=_swapped(facts.bddl_instruction, _spaced(kinds[old]), _spaced(kinds[new]), facts.task_id),
        goal=(replace(atom, args=(new, place)),),
    )


def _goal(text: str, where: str) -> tuple[str, str]:
    """What is to be put, and where."""
    found = _GOAL.search(text)
    if found is None:
        raise ValueError(_other_goal(where))
    return found[2], found[3]


def _other_goal(where: str) -> str:
    return f"target: {where} does not ask to put one object somewhere, so it has no variants with another target."


def _objects(text: str) -> dict[str, str]:
    """Movable objects of a BDDL problem, with their kinds: ``names - kind``, several names if there are several of a kind."""
    found = _OBJECTS.search(text)
    kinds: dict[str, str] = {}
    names: list[str] = []
    words = iter(found[0].strip("()").split()[1:] if found else ())
    for word in words:
        if word == "-":
            kinds |= dict.fromkeys(names, next(words, ""))
            names = []
        else:
            names.append(word)
    return kinds


def _choices(kinds: Mapping[str, str], place: str) -> dict[str, str]:
    """Objects by kind: those that a sentence can name, since there is one of them, and that are not the place itself."""
    count = list(kinds.values()).count
    return {kind: name for name, kind in kinds.items() if count(kind) == 1 and not f"{place}_".startswith(f"{name}_")}


def _chosen(kinds: Mapping[str, str], place: str, target: str, where: str) -> str:
    choices = _choices(kinds, place)
    if target in choices:
        return choices[target]
    if target in choices.values():
        return target
    raise ValueError(f"target={target!r}: not among the objects of {where}. Available: {', '.join(choices) or 'none'}.")


def _spaced(kind: str) -> str:
    return kind.replace("_", " ")


def _swapped(text: str, before: str, after: str, where: str) -> str:
    """Replace the one occurrence of a name."""
    pattern = rf"(?<![^\W_]){re.escape(before)}(?![^\W_])"
    if len(re.findall(pattern, text, re.IGNORECASE)) != 1:
        raise ValueError(f"target: {where} can't be given another one, since {text!r} does not name {before!r} once.")
    return re.sub(pattern, lambda _: after, text, flags=re.IGNORECASE)
