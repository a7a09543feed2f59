"""
Recorded episodes: what a reward is verified on.

A trace is the sequence of states (vocabulary keys) of one episode, ``states[0]`` being the reset state. A task's traces
live in one ``.npz`` of integers: values rounded to 1e-5 (0.01 mm), differences in time, compressed, so that things that
stand still cost nothing. No pickles.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from sb3_tgrpo.files import atomic_path
from sb3_tgrpo.rewards.facts.task_facts import data_folder, load_task_facts
from sb3_tgrpo.rewards.facts.vocabulary import State, StateValue, ValueType

TraceKind = Literal["expert", "noop", "random", "hover", "oscillate", "wrong-object", "partial"]
"""
- expert: succeeds.
- noop: no-operation actions. random: uniform actions.
- hover: the expert's own way until it could finish, then waits there (holding the object over the goal) to the step limit.
- oscillate: lifts and puts down, or approaches and retreats, to the step limit.
- wrong-object: the expert's motion with another object.
- partial: the expert stopped after some stage, then no-operation.
"""
TraceSource = Literal["simulated", "teleported", "kinematic"]
"""simulated: actions played in the simulator. teleported: states set in the simulator. kinematic: computed without it."""

RESOLUTION = 1e-5
_FORMAT = 1
_WIDTH: dict[ValueType, int] = {"bool": 1, "scalar": 1, "vec3": 3, "quat": 4}


@dataclass(frozen=True)
class Trace:
    """
    One episode.

    :param task: ``"libero_object-3"``.
    :param kind: Kind of behaviour, see :data:`TraceKind`.
    :param states: The reset state, then one state per control step; every state has the same keys.
    :param actions: (n_steps, 7), optional.
    :param label: Distinguishes traces of one kind, e.g. which stage a partial one stops at.
    :param source: Origin of the states, see :data:`TraceSource`.
    :param meta: JSON values: seed, init_state_id, assets, ...
    """

    task: str
    kind: TraceKind
    states: Sequence[State]
    actions: npt.NDArray[np.float32] | None = None
    label: str = ""
    source: TraceSource = "simulated"
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(TraceKind):
            raise ValueError(f"kind must be one of {get_args(TraceKind)}, got {self.kind!r}.")
        if self.source not in get_args(TraceSource):
            raise ValueError(f"source must be one of {get_args(TraceSource)}, got {self.source!r}.")
        if len(self.states) < 2:
            raise ValueError(f"states must hold the reset state and at least one step, got {len(self.states)}.")
        if self.actions is not None and len(self.actions) != self.n_steps:
            raise ValueError(f"actions must have one row per step ({self.n_steps}), got {len(self.actions)}.")

    @property
    def n_steps(self) -> int:
        """Control steps, one less than states."""
        return len(self.states) - 1

    @property
    def success_step(self) -> int | None:
        """Index of the first state in which the goal holds, None if it never does."""
        return next((i for i, state in enumerate(self.states) if state["success"]), None)

    @property
    def name(self) -> str:
        """For messages: kind and label."""
        return f"{self.kind}/{self.label}" if self.label else self.kind


def save_traces(path: str | os.PathLike[str], traces: Iterable[Trace]) -> None:
    """
    Write the traces of one task, atomically.

    :param path: An ``.npz`` file; its folder is made.
    :param traces: Traces of one task, all with the same keys.
    :raises ValueError: If there are none, or tasks or keys differ.
    """
    traces = list(traces)
    if not traces:
        raise ValueError("traces is empty: there is nothing to save.")
    task, keys = traces[0].task, sorted(traces[0].states[0])
    types = _value_types(traces[0].states[0])
    arrays: dict[str, npt.NDArray[Any]] = {}
    head = []
    for i, trace in enumerate(traces):
        if trace.task != task or sorted(trace.states[0]) != keys:
            raise ValueError(f"traces must share task and keys: trace {i} ({trace.name} of {trace.task}) differs from {task}.")
        rows = np.array([[x for key in keys for x in _flat(state[key])] for state in trace.states], dtype=np.float64)
        ticks = np.rint(rows / RESOLUTION).astype(np.int64)
        arrays[f"states_{i}"] = np.diff(ticks, axis=0, prepend=0).astype(np.int32).T
        if trace.actions is not None:
            arrays[f"actions_{i}"] = np.asarray(trace.actions, dtype=np.float32)
        head.append({"kind": trace.kind, "label": trace.label, "source": trace.source, "meta": dict(trace.meta)})
    header = {"format": _FORMAT, "task": task, "keys": [[key, types[key]] for key in keys], "traces": head}
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with atomic_path(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_traces(path_or_task: str | os.PathLike[str]) -> list[Trace]:
    """
    Read a file of traces, or the shipped traces of a task.

    :param path_or_task: A path ending in ``.npz``, or ``"libero_object-3"``.
    :raises ValueError: If there is no such file or its format is another.
    """
    name = os.fspath(path_or_task)
    if not name.endswith(".npz"):
        name = str(data_folder("traces") / f"{load_task_facts(name).task_id}.npz")
    if not os.path.isfile(name):
        raise ValueError(f"No traces at {name!r}.")
    with np.load(name, allow_pickle=False) as data:
        header = json.loads(data["header"].tobytes().decode())
        if header.get("format") != _FORMAT:
            raise ValueError(f"{name!r} has trace format {header.get('format')}; this version reads {_FORMAT}.")
        keys: list[tuple[str, ValueType]] = [(key, kind) for key, kind in header["keys"]]
        traces = []
        for i, entry in enumerate(header["traces"]):
            rows = np.cumsum(data[f"states_{i}"].T.astype(np.int64), axis=0) * RESOLUTION
            actions = data[f"actions_{i}"] if f"actions_{i}" in data else None
            states = [_unflat(row, keys) for row in rows.tolist()]
            traces.append(Trace(task=header["task"], states=states, actions=actions, **entry))
    return traces


def _flat(value: StateValue) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (float(value),)


def _unflat(row: list[float], keys: Sequence[tuple[str, ValueType]]) -> State:
    state: State = {}
    at = 0
    for key, kind in keys:
        width = _WIDTH[kind]
        cells = row[at : at + width]
        at += width
        state[key] = cells[0] > 0.5 if kind == "bool" else cells[0] if kind == "scalar" else tuple(cells)
    return state


def _value_types(state: State) -> dict[str, ValueType]:
    types: dict[str, ValueType] = {}
    for key, value in state.items():
        if isinstance(value, bool):
            types[key] = "bool"
        elif isinstance(value, float):
            types[key] = "scalar"
        elif isinstance(value, tuple) and len(value) in (3, 4):
            types[key] = "vec3" if len(value) == 3 else "quat"
        else:
            raise ValueError(f"state[{key!r}] must be a bool, a float or a tuple of 3 or 4 floats, got {value!r}.")
    return types
