"""
The reward program that an environment runs: a level, and the rule by which it is paid.

Every program turns a state into a *level* (f1 + f2 of the paper's equation 1, section IV-A). The payment rule turns levels
into rewards; a success bonus is paid once, at the first step where the goal holds, under every rule.

- ``"per_step"``, as in the paper: the level itself, at every step. Lingering near the goal out-earns reaching it when episodes
  end at success.
- ``"latched"``, the default: what the level exceeds its best so far, so that the return is the best level reached.
- ``"potential"``: the change of the level, so that the return is the last level; losing progress is paid back.

The rewards' sum feeds the trajectory level of TGRPO's advantage under every rule. The step level compares ``step.signal``: the
reward itself under ``per_step``, the progress otherwise, because the payments of the other rules are zero at most steps.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from sb3_tgrpo.rewards.facts.errors import RewardError
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, Vec3, available_tasks, data_folder, load_task_facts
from sb3_tgrpo.rewards.facts.task_name import TaskName
from sb3_tgrpo.rewards.program.compile import compile_spec
from sb3_tgrpo.rewards.program.level import DEFAULT_PAYMENT, Compiled, Info, Payment, State, StateLevel
from sb3_tgrpo.rewards.program.printing import spec_to_python
from sb3_tgrpo.rewards.program.python_source import compile_python
from sb3_tgrpo.rewards.program.spec import RewardSpec
from sb3_tgrpo.rewards.program.static_checks import check_spec

_OWN_FACTS = "For another task: RewardProgram.from_spec(path, facts=TaskFacts.from_dict(env.task_facts())) with its env."


class RewardStep(NamedTuple):
    """
    One step's result.

    :param reward: Reward.
    :param stage: Stages that are done, over all tracks.
    :param n_stages: Number of stages.
    :param progress: The level as a share of its maximum, in [0, 1]; 1 at success.
    :param signal: Quantity that the step level of the advantage compares, for ``info["step_signal"]``.
    :param terms: Named parts, for ``info`` and logs.
    """

    reward: float
    stage: int
    n_stages: int
    progress: float
    signal: float
    terms: dict[str, float]


class RewardMemory(NamedTuple):
    """
    What a program remembers between steps; immutable.

    :param core: The stage machine's counters, or the variables of a program written in Python.
    :param start: Positions of objects at reset; None before the first state.
    :param best: Highest level so far.
    :param level: Level of the last state.
    :param succeeded: The success bonus has been paid.
    :param failures: Steps at which the program had no finite result and paid nothing.
    """

    core: tuple[Any, ...]
    start: Mapping[str, Vec3] | None = None
    best: float = 0.0
    level: float = 0.0
    succeeded: bool = False
    failures: int = 0


class RewardProgram:
    """
    A pure function (state, info, memory) -> (step, memory).

    Build one with :meth:`from_spec`, :meth:`from_python` or :func:`load_reward`.

    ``task`` is the task's id and ``instruction`` its sentence; ``keys`` are the state keys that are read; ``max_level`` is the
    level when everything is done; ``success_points`` is the bonus; ``bound`` limits the absolute value of any one reward;
    ``spec`` is None for a program written in Python.
    """

    def __init__(
        self,
        compiled: Compiled,
        facts: TaskFacts,
        payment: Payment,
        *,
        spec: RewardSpec | None = None,
        source: str | None = None,
    ) -> None:
        if payment not in get_args(Payment):
            raise ValueError(f"payment must be one of {get_args(Payment)}, got {payment!r}.")
        self._evaluate = compiled.evaluate
        self._core = compiled.core
        self._facts = facts
        self._start_objects = compiled.start_objects
        self._min_level = compiled.min_level
        self.success_points = compiled.success_points
        self.task = facts.task_id
        self.instruction = facts.instruction
        self.keys = compiled.keys
        self.n_stages = compiled.n_stages
        self.max_level = compiled.max_level
        self.bound = compiled.max_level - compiled.min_level + compiled.success_points
        self.payment: Payment = payment
        self.spec = spec
        self.source = source

    @classmethod
    def from_spec(
        cls,
        source: RewardSpec | Mapping[str, Any] | str | bytes | os.PathLike[str],
        *,
        facts: TaskFacts | None = None,
        payment: Payment = DEFAULT_PAYMENT,
    ) -> "RewardProgram":
        """
        Check and compile a declarative reward.

        :param source: A :class:`~sb3_tgrpo.rewards.program.spec.RewardSpec`, a mapping, a JSON text or a path.
        :param facts: Facts of the task; None = the shipped ones of the task that the spec names.
        :param payment: Rule that turns the level into a reward.
        :raises RewardError: If a field is wrong, naming it, its value and the valid choices.
        """
        spec = RewardSpec.parse(source)
        if facts is None:
            try:
                facts = load_task_facts(spec.task)
            except ValueError as error:
                raise RewardError(f"{error} {_OWN_FACTS}") from None
        problems = check_spec(spec, facts)
        if problems:
            raise RewardError(problems)
        return cls(compile_spec(spec, facts), facts, payment, spec=spec)

    @classmethod
    def from_python(
        cls, source: str, *, task: str | None = None, facts: TaskFacts | None = None, payment: Payment = DEFAULT_PAYMENT
    ) -> "RewardProgram":
        """
        Compile ``def compute_reward(state, info)`` written in the subset of Python of docs/rewards.md; nothing else runs.

        :param source: Python source of that one function.
        :param task: The task whose state keys may be read, e.g. ``"libero_object-3"``.
        :param facts: Its facts; None = the shipped ones.
        :param payment: Rule that turns the level into a reward.
        :raises RewardError: If it is not allowed, naming the line, what was found and what is allowed.
        """
        if facts is None:
            if task is None:
                raise ValueError("from_python needs task= or facts=, which define the state keys.")
            facts = load_task_facts(task)
        return cls(compile_python(source, facts), facts, payment, source=source)

    @property
    def sha256(self) -> str:
        """Hex digest of the spec or of the Python source: the payment rule does not count."""
        return hashlib.sha256((self.source or "").encode()).hexdigest() if self.spec is None else self.spec.sha256

    def to_python(self) -> str:
        """
        The program as a readable ``compute_reward(state, info)``.

        :meth:`from_python` accepts the text, unless a long spec makes it longer than 32 KiB, and the program it gives pays
        the same.
        """
        if self.spec is None:
            return self.source or ""
        return spec_to_python(self.spec, self._facts)

    def with_payment(self, payment: Payment) -> "RewardProgram":
        """The same program under another payment rule; ValueError if there is no such rule."""
        return _rebuild(self.spec, self.source, self._facts, payment)

    def reset(self, state: State | None = None) -> RewardMemory:
        """
        Memory for a new episode.

        :param state: The reset state, against which progress is counted; None = the first state that the program is called
            with, whose step then pays nothing under ``latched`` and ``potential``.
        """
        memory = RewardMemory(self._core)
        return memory if state is None else self(state, {"step": 0}, memory)[1]

    def __call__(self, state: State, info: Info, memory: RewardMemory) -> tuple[RewardStep, RewardMemory]:
        """
        One step. Neither argument is changed.

        :param state: Vocabulary keys of :attr:`keys` at least.
        :param info: ``{"step": steps since reset}``.
        :param memory: Memory from :meth:`reset` or the last call.
        :raises RewardError: If the state lacks a key. A result that is not finite or out of bounds raises nothing: the step
            pays nothing and counts in ``terms["failures"]``.
        """
        try:
            start = memory.start
            if start is None:
                start = {name: state[f"{name}_pos"] for name in self._start_objects}  # type: ignore[misc]
            value = self._evaluate(state, info, memory.core, start)
            success = bool(state["success"])
        except KeyError as error:
            raise RewardError(f"the state has no key {error}; this reward reads {', '.join(self.keys)}") from None
        except (ArithmeticError, ValueError):
            return self._failed(memory)
        level = value.level
        if not (math.isfinite(level) and self._min_level <= level <= self.max_level + 1e-9):
            return self._failed(memory)
        return self._pay(value, level, success, memory, start)

    def _pay(
        self, value: StateLevel, level: float, success: bool, memory: RewardMemory, start: Mapping[str, Vec3]
    ) -> tuple[RewardStep, RewardMemory]:
        first = memory.start is None
        best = level if first else max(memory.best, level)
        if self.payment == "per_step":
            reward = level
        elif first:
            reward = 0.0
        else:
            reward = best - memory.best if self.payment == "latched" else level - memory.level
        bonus = self.success_points if success and not memory.succeeded else 0.0
        reward += bonus
        progress = 1.0 if success else max(0.0, min(1.0, level / self.max_level))
        terms = {
            "level": level,
            "stages": level - value.shaping,
            "pose_shaping": value.shaping,
            "success_bonus": bonus,
            "failures": float(memory.failures),
        }
        for name, at in value.at:
            terms[f"stage_{name}"] = float(at)
        signal = reward if self.payment == "per_step" else progress
        step = RewardStep(float(reward), value.stage, self.n_stages, float(progress), float(signal), terms)
        return step, RewardMemory(value.core, start, best, level, memory.succeeded or success, memory.failures)

    def _failed(self, memory: RewardMemory) -> tuple[RewardStep, RewardMemory]:
        memory = memory._replace(failures=memory.failures + 1)
        progress = max(0.0, min(1.0, memory.level / self.max_level))
        terms = {"level": memory.level, "stages": 0.0, "pose_shaping": 0.0, "success_bonus": 0.0}
        terms["failures"] = float(memory.failures)
        signal = 0.0 if self.payment == "per_step" else progress
        return RewardStep(0.0, 0, self.n_stages, progress, signal, terms), memory

    def __reduce__(self) -> tuple[Callable[..., "RewardProgram"], tuple[Any, ...]]:
        return _rebuild, (self.spec and self.spec.to_json(), self.source, self._facts, self.payment)

    def __repr__(self) -> str:
        kind = "python" if self.spec is None else f"spec {self.spec.sha256[:12]}"
        return f"RewardProgram({self.task!r}, {kind}, n_stages={self.n_stages}, payment={self.payment!r})"


def _rebuild(spec: RewardSpec | str | None, source: str | None, facts: TaskFacts, payment: Payment) -> RewardProgram:
    if spec is None:
        return RewardProgram.from_python(source or "", facts=facts, payment=payment)
    return RewardProgram.from_spec(spec, facts=facts, payment=payment)


def load_reward(task_or_path: str | os.PathLike[str], *, payment: Payment = DEFAULT_PAYMENT) -> RewardProgram:
    """
    The shipped reward of a task, or a spec from a file.

    :param task_or_path: ``"libero_object-3"``, the gym id, or a path ending in ``.json``.
    :param payment: Rule that turns the level into a reward.
    :raises RewardError: If there is none or it is malformed.
    """
    name = os.fspath(task_or_path)
    if name.endswith(".json"):
        return RewardProgram.from_spec(Path(name), payment=payment)
    try:
        task = TaskName.parse(name)
    except ValueError as error:
        raise RewardError(f"{error} A path must end in .json.") from None
    path = data_folder("specs") / f"{task}.json"
    if not path.is_file():
        raise RewardError(f"no reward ships for {name!r}; there are rewards for {', '.join(available_tasks())}")
    return RewardProgram.from_spec(path.read_text(encoding="utf-8"), payment=payment)
