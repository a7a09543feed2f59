"""LIBERO's goal predicates on the live model, with every name resolved beforehand."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_tgrpo.envs.libero.geometry import geom_mask
from sb3_tgrpo.envs.libero.scene import LiberoScene

Predicate = Callable[[], bool]


class GoalPredicates:
    """
    The goal of a task: a conjunction of atoms.

    The formulas are LIBERO's, quirks included: ``On`` a region rotates by the region's matrix where its inverse is meant,
    ``In`` takes the absolute value of the rotated size, and ``Close`` of a drawer is strict, so that one which rests
    closed is not.

    :raises ValueError: If LIBERO does not define a predicate, or can't judge its arguments.
    """

    def __init__(self, scene: LiberoScene) -> None:
        self._scene = scene
        self.atoms: list[tuple[str, ...]] = [tuple(atom) for atom in scene.problem.parsed_problem["goal_state"]]
        self._predicates = [self._compile(atom) for atom in self.atoms]

    def evaluate(self) -> list[bool]:
        """Truth of each atom now."""
        return [bool(predicate()) for predicate in self._predicates]

    def _compile(self, atom: tuple[str, ...]) -> Predicate:
        name, args = atom[0].lower(), atom[1:]
        states = self._scene.problem.object_states_dict
        builders: dict[str, tuple[int, Callable[..., Predicate]]] = {
            "true": (len(args), lambda *_: lambda: True),
            "false": (len(args), lambda *_: lambda: False),
            "in": (2, self._in),
            "on": (2, self._on),
            "up": (1, self._up),
            "open": (1, lambda thing: self._joint(thing, "is_open", any)),
            "close": (1, lambda thing: self._joint(thing, "is_close", all)),
            "turnon": (1, lambda thing: self._joint(thing, "turn_on", any)),
            "turnoff": (1, lambda thing: self._joint(thing, "turn_off", all)),
        }
        unknown = [arg for arg in args if arg not in states]
        if name not in builders or len(args) != builders[name][0] or unknown:
            raise ValueError(
                f"{self._scene.task.bddl_file}: can't judge the goal {atom}. Predicates: {', '.join(builders)}; "
                f"things: {', '.join(states)}."
            )
        return builders[name][1](*(states[arg] for arg in args))

    def _position(self, thing: Any) -> np.ndarray:
        """A live view of a body's position."""
        return self._scene.data.xpos[self._scene.problem.obj_body_id[thing.object_name]]

    def _site(self, thing: Any) -> tuple[np.ndarray, np.ndarray]:
        site = self._scene.model.site(thing.object_name).id
        return self._scene.data.site_xpos[site], self._scene.data.site_xmat[site].reshape(3, 3)

    def _contact(self, first: Any, second: Any) -> Predicate:
        data = self._scene.data
        one, two = (geom_mask(self._scene.model, thing.contact_geoms) for thing in (first, second))

        def touching() -> bool:
            geom1, geom2 = data.contact.geom.T
            return bool(((one[geom1] & two[geom2]) | (one[geom2] & two[geom1])).any())

        return touching

    def _in(self, thing: Any, container: Any) -> Predicate:
        if container.object_state_type != "site":
            raise ValueError(f"{self._scene.task.bddl_file}: In needs a region, {container.object_name} is not one.")
        position = self._position(thing)
        site_pos, site_mat = self._site(container)
        size = np.asarray(self._scene.problem.object_sites_dict[container.object_name].size)
        slack = np.array([0.0, 0.0, 0.01])

        def inside() -> bool:
            half = np.abs(site_mat @ size)
            return bool(np.all(position > site_pos - half - slack) and np.all(position < site_pos + half))

        return inside

    def _on(self, thing: Any, support: Any) -> Predicate:
        if support.object_state_type == "site":
            return self._on_site(thing, support)
        position, below = self._position(thing), self._position(support)
        problem = self._scene.problem
        touching = self._contact(problem.get_object(support.object_name), problem.get_object(thing.object_name))

        def on_top() -> bool:
            return bool(below[2] <= position[2] and np.linalg.norm(below[:2] - position[:2]) < 0.03 and touching())

        return on_top

    def _on_site(self, thing: Any, site: Any) -> Predicate:
        problem = self._scene.problem
        region = problem.object_sites_dict[site.object_name]
        if not hasattr(region, "under"):
            return lambda: True
        position = self._position(thing)
        site_pos, site_mat = self._site(site)
        size = np.asarray(region.size)
        parent = problem.get_object(site.parent_name)
        touching = self._contact(parent, problem.get_object(thing.object_name)) if parent is not None else lambda: True

        def on_region() -> bool:
            delta = site_mat @ (position - site_pos)
            return bool(size[2] - 0.005 < delta[2] < size[2] + 0.10 and np.all(np.abs(delta[:2]) < size[:2]) and touching())

        return on_region

    def _up(self, thing: Any) -> Predicate:
        if thing.object_state_type == "site":
            position, _ = self._site(thing)
        else:
            position = self._position(thing)
        return lambda: bool(position[2] >= 1.0)

    def _joint(self, thing: Any, method: str, combine: Callable[..., bool]) -> Predicate:
        problem, qpos = self._scene.problem, self._scene.data.qpos
        if thing.object_state_type == "site":
            joints = problem.object_sites_dict[thing.object_name].joints
            owner = problem.get_object(thing.parent_name)
        else:
            owner = problem.get_object(thing.object_name)
            joints = owner.joints
        judge = getattr(owner, method, None)
        if judge is None:
            raise ValueError(f"{self._scene.task.bddl_file}: {thing.object_name} can't be opened, closed or turned.")
        addresses = [int(self._scene.model.joint(joint).qposadr[0]) for joint in joints or []]
        return lambda: combine(judge(qpos[address]) for address in addresses)
