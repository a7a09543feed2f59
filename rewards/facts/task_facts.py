"""
Task facts: what is known about a LIBERO task before any step is taken, shipped as data so that rewards need no simulator.

One JSON file per task, ``data/task_facts/<suite>-<index>.json``, written by ``python scripts/write_task_facts.py``
from the simulator itself. Names (objects, sites, fixtures, joints, handles) are the ones that fill the ``{...}`` of
:data:`sb3_tgrpo.rewards.facts.vocabulary.VOCABULARY`. Metres, radians, quaternions (x, y, z, w), world frame.
"""

import dataclasses
import functools
import json
import re
import typing
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Literal, TypeVar

from sb3_tgrpo.rewards.facts.task_name import TaskName
from sb3_tgrpo.rewards.facts.vocabulary import VOCABULARY, State, ValueType

Vec3 = tuple[float, float, float]
Quat = tuple[float, float, float, float]

SCHEMA_VERSION = 1
SHIPPED_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


@dataclass(frozen=True)
class GoalAtom:
    """
    One atom of the (conjunctive) goal.

    :param predicate: LIBERO's predicate in lower case: ``on``, ``in``, ``open``, ``close``, ``turnon``, ...
    :param args: Its arguments as the BDDL file names them.
    :param true_at_start: It already holds at reset, as the stove that is on in libero_10 task 8.
    """

    predicate: str
    args: tuple[str, ...]
    true_at_start: bool = False


@dataclass(frozen=True)
class ObjectFacts:
    """
    A movable object.

    :param name: Instance name, ``ketchup_1``.
    :param kind: Category, ``ketchup``.
    :param aabb_lo: Lower corner of its collision geometry in the body's own frame, relative to the body origin.
    :param aabb_hi: Upper corner.
    :param start_pos: Body origin after the settling steps of the first stored initial state.
    :param start_quat: Orientation there.
    """

    name: str
    kind: str
    aabb_lo: Vec3
    aabb_hi: Vec3
    start_pos: Vec3
    start_quat: Quat


@dataclass(frozen=True)
class SiteFacts:
    """
    A region.

    :param name: Site name, ``basket_1_contain_region``.
    :param half_size: Half extents along the site's own axes.
    :param parent: The object or fixture that it belongs to, ``""`` for a zone of the table or floor.
    :param joint: The joint that moves it (a drawer's), or ``""``.
    """

    name: str
    half_size: Vec3
    start_pos: Vec3
    start_quat: Quat
    parent: str = ""
    joint: str = ""


@dataclass(frozen=True)
class FixtureFacts:
    """A body that cannot be carried: cabinet, stove, microwave, rack, caddy."""

    name: str
    kind: str
    start_pos: Vec3
    start_quat: Quat


@dataclass(frozen=True)
class JointThreshold:
    """
    What a predicate asks of a joint.

    :param predicate: ``open``, ``close``, ``turnon`` or ``turnoff``.
    :param op: The joint's position must be below or above ``value`` (strictly, except ``turnon``, which is at least).
    """

    predicate: str
    op: Literal["below", "above"]
    value: float


@dataclass(frozen=True)
class JointFacts:
    """
    A drawer, door or knob.

    :param name: The name that ``{joint}_qpos`` takes.
    :param fixture: The fixture it belongs to.
    :param type: ``slide`` in metres or ``hinge`` in radians.
    :param range: Lower and upper limit.
    :param start: Position at the nominal initial state.
    """

    name: str
    fixture: str
    type: Literal["slide", "hinge"]
    range: tuple[float, float]
    start: float
    thresholds: tuple[JointThreshold, ...] = ()


@dataclass(frozen=True)
class HandleFacts:
    """What is pulled, pushed or turned to move a joint."""

    name: str
    fixture: str
    joint: str
    start_pos: Vec3


@dataclass(frozen=True)
class TaskFacts:
    """
    Everything a reward's author may rely on about one task.

    :param suite: ``libero_object``.
    :param index: LIBERO's own task order.
    :param name: The BDDL file's name without its suffix.
    :param instruction: The sentence given to the policy (LIBERO's ``Task.language``, from the file name).
    :param bddl_instruction: The BDDL file's own ``:language`` sentence.
    :param support_z: Height of the surface that objects stand on.
    :param gripper_range: (closed on nothing, fully open) distance between the fingers.
    :param horizon: Step limit used in evaluation.
    :param control_freq: Control steps a second.
    """

    suite: str
    index: int
    name: str
    instruction: str
    bddl_instruction: str
    goal: tuple[GoalAtom, ...]
    objects: tuple[ObjectFacts, ...]
    sites: tuple[SiteFacts, ...]
    fixtures: tuple[FixtureFacts, ...]
    joints: tuple[JointFacts, ...]
    handles: tuple[HandleFacts, ...]
    support_z: float
    eef_start_pos: Vec3
    eef_start_quat: Quat
    gripper_range: tuple[float, float]
    horizon: int
    control_freq: int = 20
    schema_version: int = SCHEMA_VERSION

    @property
    def task_id(self) -> str:
        """``<suite>-<index>``, the name that every interface takes."""
        return str(TaskName(self.suite, self.index))

    def names(self, group: Literal["object", "site", "fixture", "joint", "handle"]) -> tuple[str, ...]:
        """Names of one kind of thing, in the file's order."""
        return tuple(thing.name for thing in getattr(self, f"{group}s"))

    def joint_of(self, name: str) -> JointFacts:
        """The joint that moves a region or a fixture; ValueError if there is none."""
        own = {site.name: site.joint for site in self.sites}.get(name, "")
        for joint in self.joints:
            if own == joint.name or joint.fixture == name:
                return joint
        raise ValueError(f"{self.task_id}: {name} has no joint to move.")

    @functools.cached_property
    def state_types(self) -> dict[str, ValueType]:
        """Every state key of this task with its type: the vocabulary with the names filled in."""
        types_: dict[str, ValueType] = {}
        for pattern, term in VOCABULARY.items():
            match = re.match(r"(.*)\{(\w+)\}(.*)", pattern)
            if match is None:
                types_[pattern] = term.type
                continue
            before, slot, after = match.groups()
            fillers = map(str, range(len(self.goal))) if slot == "k" else self.names(slot)  # type: ignore[arg-type]
            types_.update({f"{before}{filler}{after}": term.type for filler in fillers})
        return types_

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, tuples as lists."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TaskFacts":
        """
        The inverse of :meth:`to_dict`.

        :raises ValueError: If a field is missing, unknown or of the wrong type, naming it.
        """
        facts = _build(cls, data, "TaskFacts")
        if facts.schema_version != SCHEMA_VERSION:
            raise ValueError(f"TaskFacts.schema_version is {facts.schema_version}; this version reads {SCHEMA_VERSION}.")
        return facts


T = TypeVar("T")


def _build(cls: type[T], data: Any, where: str) -> T:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be a JSON object, got {data!r}.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    missing = sorted(required - set(data))
    if unknown or missing:
        raise ValueError(f"{where}: unknown fields {unknown}, missing fields {missing}; fields are {sorted(fields)}.")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, got {value!r}.")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(args):
            raise ValueError(f"{where} must have {len(args)} entries, got {value!r}.")
        return tuple(_convert(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{where} must be one of {args}, got {value!r}.")
        return value
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} must be {hint.__name__}, got {value!r}.")
    return value


def data_folder(name: Literal["task_facts", "specs", "reports", "traces"]) -> Traversable:
    """A folder of the package's data."""
    return files("sb3_tgrpo.rewards") / "data" / name


def available_tasks() -> list[str]:
    """Tasks whose facts ship, in suite and index order."""
    ids = [entry.name.removesuffix(".json") for entry in data_folder("task_facts").iterdir() if entry.name.endswith(".json")]
    order = {suite: i for i, suite in enumerate(SHIPPED_SUITES)}
    return list(map(str, sorted(map(TaskName.parse, ids), key=lambda name: (order.get(name.suite, 99), name.task))))


@functools.lru_cache(maxsize=64)
def load_task_facts(task: str) -> TaskFacts:
    """
    The shipped facts of a task.

    :param task: ``"libero_object-3"`` or the gym id.
    :raises ValueError: If the task is unknown or its file is malformed.
    """
    path = data_folder("task_facts") / f"{TaskName.parse(task)}.json"
    if not path.is_file():
        raise ValueError(f"No task facts for {task!r}; there are facts for {', '.join(available_tasks()) or 'no task'}.")
    return TaskFacts.from_dict(json.loads(path.read_text(encoding="utf-8")))


def nominal_state(facts: TaskFacts) -> State:
    """The task's state at the nominal initial state, from the facts alone: nothing touched, gripper open."""
    state: State = {
        "eef_pos": facts.eef_start_pos,
        "eef_quat": facts.eef_start_quat,
        "gripper_opening": facts.gripper_range[1],
    }
    bodies: list[ObjectFacts | FixtureFacts | SiteFacts] = [*facts.objects, *facts.fixtures, *facts.sites]
    for body in bodies:
        state[f"{body.name}_pos"], state[f"{body.name}_quat"] = body.start_pos, body.start_quat
    state.update({f"{joint.name}_qpos": joint.start for joint in facts.joints})
    state.update({f"{handle.name}_pos": handle.start_pos for handle in facts.handles})
    state.update({f"goal_{k}": atom.true_at_start for k, atom in enumerate(facts.goal)})
    return {key: state.get(key, False) for key in facts.state_types}
