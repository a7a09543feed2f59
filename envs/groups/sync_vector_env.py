"""Groups of environments that start from one identical state and step together (arXiv 2506.08440, section IV-C)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from sb3_tgrpo.envs.groups.worker import InProcessWorker, SubprocessWorker, Worker, WorkerLostError, WorkerProcess
from sb3_tgrpo.settings import check_number, typed

StopOn = Literal["success", "termination", "never"]
StartOptions = Callable[[np.random.Generator], dict[str, Any] | None]

MAX_RESTARTS = 3
"""How often the process of one environment is restarted before its group is finished."""


def succeeded(info: Mapping[str, Any]) -> bool:
    """Whether an info reports success. NaN, which some environments report for "not known", is none."""
    value = info.get("is_success", False)
    return bool(value) and bool(value == value)


class GroupStep(NamedTuple):
    """
    One step of all members, as lists over the environments. A group that ended in this step is already back at a start:
    ``observations`` hold the new start, ``final_observations`` where its members ended.
    """

    observations: list[Any]
    rewards: np.ndarray  # (num_envs,) float64, 0 where not valid
    terminations: np.ndarray  # (num_envs,) bool, only True in the step in which the group ends
    truncations: np.ndarray  # (num_envs,) bool, likewise
    infos: list[dict[str, Any]]  # of the step just made; empty for a member that stood still
    valid: np.ndarray  # (num_envs,) bool: this member made a step that counts
    final_observations: dict[int, Any]  # by environment, of groups that ended
    final_infos: dict[int, dict[str, Any]]  # likewise, of each member's own last step, which may be long ago
    start_infos: dict[int, dict[str, Any]]  # by environment, reset infos of groups that started anew


class SyncGroupVectorEnv(VectorEnv):
    """
    Vector environment of ``n_groups = len(env_fns) / group_size`` groups. The members of a group start from the same state
    (same seed and options), step together and end together; groups are independent of one another. A group that has ended
    starts anew in the same step (Gymnasium's ``SAME_STEP`` auto-reset, with ``final_obs`` and ``final_info``).

    A member that ends while its group goes on is *held*: it stands still, its reward is 0 and it is masked. The mask is
    ``infos["valid"]``; ``terminations`` and ``truncations`` are raised for all members in the step that ends the group, and
    ``final_obs`` and ``final_info`` are those of each member's own last step, also of one that was held since then.

    Stop rules (contract of ``stop_on``):

    - ``"success"``: the group ends when its first member reports ``info["is_success"]``. Members that did not succeed are
      truncated, also one that had failed and was held: the group's end is the end of all.
    - ``"termination"``: the group ends when its first member terminates; the others are truncated.
    - ``"never"``: each member runs to its own end.

    Under every rule the group also ends when nobody is left; each member is then terminated or truncated as its own episode
    was.

    The first start of group ``g`` after ``reset(seed=s)`` has seed ``s + g``, so that a group of one task starts where a plain
    environment does; later starts get seeds derived from ``(s, g, number of the start)``.

    An environment whose process crashes or does not answer within ``timeout`` is started anew and its group sampled again from
    the same start; ``infos["resampled"]`` is then True for the group's members, whose steps since the start do not count. Each
    environment may be restarted three times before its group is finished; a fourth time is a ``RuntimeError``. If it is
    :meth:`call` or another question that it does not answer, the caller gets a
    :class:`~sb3_tgrpo.envs.groups.worker.WorkerLostError`, and the next step or reset that needs the environment starts it
    anew.

    With ``alternate`` the groups are divided into two halves that take turns: a step carries out the actions of one half and
    returns what the other half has meanwhile made of its own, so that simulators work while the policy thinks (rlpyt's
    alternating sampler; Sample Factory's double buffering). :attr:`active` tells whose turn it is, the mask whose step came
    back; the very first step returns nobody's. Trajectories are the same.

    :param env_fns: Functions that make one environment each; the first ``group_size`` make up the first group, and so on.
    :param group_size: Members per group, at least 2.
    :param stop_on: Rule by which a group ends, see above.
    :param timeout: Seconds to wait for a step or a reset of an environment in a process of its own.
    :param subprocess: Whether environments run in processes of their own, which survives crashes and hangs, or in this one.
    :param start_options: Reset options of each new start, drawn with the generator of that start, which depends on the seed
        alone; for instance ``lambda rng: {"init_state_id": int(rng.integers(50))}``.
    :param alternate: Whether the halves of the groups take turns, see above; nothing changes with one group.
    :param processes: Number of processes that environments share, see :class:`~sb3_tgrpo.envs.groups.worker.SubprocessWorker`;
        None: one each, so that what a crash costs is its own group.
    :raises ValueError: On a group size below 2, a number of environments that it does not divide, unknown ``stop_on``,
        environments with different spaces, or members whose seeded resets differ.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        group_size: int,
        *,
        stop_on: StopOn = "success",
        timeout: float | None = 60.0,
        subprocess: bool = True,
        start_options: StartOptions | None = None,
        alternate: bool = False,
        processes: int | None = None,
    ) -> None:
        super().__init__()
        if group_size < 2:
            raise ValueError(f"group_size={group_size}: a group compares its members, so it needs at least 2.")
        if len(env_fns) == 0 or len(env_fns) % group_size != 0:
            raise ValueError(f"{len(env_fns)} environments do not make up whole groups of group_size={group_size}.")
        typed(StopOn, stop_on, "stop_on")
        check_number("processes", processes, int, optional=True, why=" for one per environment")
        check_number("timeout", timeout, positive=True, optional=True, why=" to wait forever, in seconds")
        self.group_size = group_size
        self.num_envs = len(env_fns)
        self.n_groups = self.num_envs // group_size
        self.stop_on = stop_on
        self.timeout = timeout
        self.start_options = start_options
        self.alternate = alternate
        self.restarts = subprocess
        # The two halves that take turns, and whose turn it is; without `alternate` all are of one.
        self._half = np.arange(self.num_envs) // self.group_size >= (self.n_groups + 1) // 2
        self._half &= alternate
        self._turn = False
        self.n_moves = 0  # resets and steps so far, by which a user notices those of another one
        self._told_of_success = False
        self._in_flight = np.zeros(self.num_envs, dtype=bool)  # has been sent an action, and its answer is not received
        self._answers: dict[int, Any] = {}  # of members in flight, received ahead of their turn

        self._workers: list[Worker] = []
        try:
            self._make_workers(env_fns, subprocess, processes)
            self._read_spaces()
        except BaseException:
            self.close()
            raise

        self._entropy: int | None = None  # base seed of the starts
        self._n_starts = np.zeros(self.n_groups, dtype=np.int64)  # starts taken so far, so the next start's number
        self._starts: list[tuple[int, dict[str, Any] | None]] = [(0, None)] * self.n_groups  # seed, options of the current one
        # Of each environment since the start of its group: what strikes a whole group at once, such as a machine that was
        # suspended, is one restart for each of its members.
        self._restarts = np.zeros(self.num_envs, dtype=np.int64)
        self._paused = np.zeros(self.num_envs, dtype=bool)
        self._over = np.ones(self.num_envs, dtype=bool)  # True before the first reset: nothing to step
        self._terminated = np.zeros(self.num_envs, dtype=bool)
        self._truncated = np.zeros(self.num_envs, dtype=bool)
        self._observations: list[Any] = [None] * self.num_envs
        self._last_infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]  # of each member's own last step

    # ------------------------------------------------------------------ Gymnasium's interface

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """
        Start all groups.

        :param seed: Base seed of the starts; a list gives the seed of every environment, equal within a group; None goes on to
            the next start.
        :param options: Reset options of every environment for this start.
        :return: Batched observations and infos.
        """
        if options is not None and "reset_mask" in options:
            raise ValueError("options={'reset_mask': ...}: the members of a group start together. Leave it out.")
        infos = self.reset_groups(seed=seed, options=options)
        batched: dict[str, Any] = {}
        for i, info in enumerate(infos):
            batched = self._add_info(batched, info, i)
        return self._batch(self._observations), batched

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """
        One step of every member that is not held.

        :param actions: Batched actions; those of held members are ignored.
        :return: Observations, rewards, terminations, truncations and infos with the arrays ``valid`` and ``resampled``.
        """
        step = self.step_groups(list(iterate(self.action_space, actions)))
        infos: dict[str, Any] = {}
        for i, info in enumerate(step.infos):
            if i in step.final_observations:
                final = {"final_obs": step.final_observations[i], "final_info": step.final_infos[i]}
                infos = self._add_info(infos, final, i)
                info = step.start_infos[i]
            infos = self._add_info(infos, {key: value for key, value in info.items() if key != "resampled"}, i)
        infos["valid"] = step.valid
        infos["resampled"] = np.array([info.get("resampled", False) for info in step.infos])
        return self._batch(step.observations), step.rewards, step.terminations, step.truncations, infos

    def render(self) -> tuple[Any, ...]:
        """Rendered frames of all environments."""
        return tuple(self.call("render"))

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments and end their processes."""
        workers = getattr(self, "_workers", [])
        for worker in workers:
            worker.send("close")  # all at once: each may take a while to free its simulator
        for worker in workers:
            worker.close()

    def call(self, name: str, *args: Any, indices: Sequence[int] | None = None, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of the environments, also one behind wrappers."""
        return self._ask("call", name, args, kwargs, indices=indices)

    def get_attr(self, name: str, indices: Sequence[int] | None = None) -> tuple[Any, ...]:
        """Attribute of the environments, also one behind wrappers."""
        return self._ask("get_attr", name, indices=indices)

    def set_attr(self, name: str, values: Any, indices: Sequence[int] | None = None) -> None:
        """
        Set an attribute where it is defined: on the environment itself if no wrapper has it.

        :param name: Name of the attribute.
        :param values: A value for all environments, or a list or tuple of one for each, as in Gymnasium.
        :param indices: Environments whose attribute is set, all by default.
        :raises ValueError: If there is another number of values than of environments.
        """
        chosen = list(range(self.num_envs) if indices is None else indices)
        each = values if isinstance(values, (list, tuple)) else [values] * len(chosen)
        if len(each) != len(chosen):
            raise ValueError(f"There are {len(each)} values of {name!r} for {len(chosen)} environments: give one for each.")
        for i, value in zip(chosen, each, strict=True):
            self._ask("set_attr", name, value, indices=[i])

    def is_wrapped(self, wrapper_class: type, indices: Sequence[int] | None = None) -> tuple[bool, ...]:
        """Whether each environment is wrapped in ``wrapper_class``."""
        return self._ask("is_wrapped", wrapper_class, indices=indices)

    # ------------------------------------------------------------------ what the SB3 adapter and TGRPO use

    @property
    def active(self) -> np.ndarray:
        """
        ``(num_envs,)`` bool: members whose next action will be carried out (neither held nor in a paused group; where groups
        take turns, of the half whose turn it is).
        """
        return self._running & ~self._in_flight & (self._half == self._turn)

    @property
    def _running(self) -> np.ndarray:
        return ~(self._over | self._paused)

    def pause(self, groups: np.ndarray | Sequence[int]) -> None:
        """Let groups stand still, for instance those that have sampled all that an update needs."""
        self._paused.reshape(-1, self.group_size)[groups] = True

    def resume(self) -> None:
        """Let all groups go on; with nobody on the way, the first half begins, as after a reset."""
        self._paused[:] = False
        if not self._in_flight.any():
            self._turn = False

    def start_state(self) -> dict[str, Any]:
        """Where the sequence of starts is; the current start counts as not yet taken. JSON-serialisable."""
        return {"seed": self._entropy, "n_starts": np.maximum(self._n_starts - 1, 0).tolist()}

    def set_start_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`start_state`: the next reset begins there."""
        n_starts = np.asarray(state["n_starts"], dtype=np.int64)
        if n_starts.shape != self._n_starts.shape:
            raise ValueError(f"The saved state is of {len(n_starts)} groups, this environment has {self.n_groups}.")
        self._entropy = state["seed"]
        self._n_starts = n_starts

    def reset_groups(
        self, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """As :meth:`reset`, but returns the infos as a list and leaves the observations in ``observations``."""
        seeds: list[int | None] = [None] * self.n_groups
        if isinstance(seed, (int, np.integer)):
            self._entropy = int(seed)
            self._n_starts[:] = 0
        elif seed is not None:
            seeds = self._group_seeds(seed)
        self.n_moves += 1
        self._paused[:] = False
        # Answers of steps on their way are dropped: a worker's next answer is that of its next command.
        self._in_flight[:], self._turn = False, False
        self._answers.clear()
        for group in range(self.n_groups):
            self._draw_start(group, seeds[group], options)
        infos = self._begin(range(self.n_groups))
        return [infos[i] for i in range(self.num_envs)]

    @property
    def observations(self) -> list[Any]:
        """Latest observation of each environment."""
        return self._observations

    def step_groups(self, actions: Sequence[Any] | np.ndarray) -> GroupStep:
        """
        As :meth:`step`, on lists.

        :param actions: Actions, one per environment; those of inactive ones are ignored.
        :raises ValueError: On another number of actions.
        """
        if len(actions) != self.num_envs:  # before any is sent: members must stay in step
            raise ValueError(f"There are {len(actions)} actions, expected one per environment: {self.num_envs}.")
        acting = self.active
        if not (acting | self._in_flight).any():
            raise RuntimeError("No environment is left to step: call reset() first, or resume() the paused groups.")
        self.n_moves += 1
        rewards = np.zeros(self.num_envs)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(acting).tolist():
            self._workers[i].send("step", actions[i])
        self._in_flight |= acting
        others = self._half != self._turn
        if ((self._running | self._in_flight) & others).any():
            self._turn = not self._turn
        valid = self._in_flight & (self._half == self._turn)
        self._in_flight &= ~valid
        lost: set[int] = set()
        for i in np.flatnonzero(valid).tolist():
            try:
                observation, reward, terminated, truncated, info = self._answer(i)
            except WorkerLostError as error:
                lost.add(i)
                self._workers[i].restart()
                self._count_restart(i, error)
                continue
            self._observations[i], rewards[i] = observation, reward
            infos[i], self._last_infos[i] = info, dict(info)  # the caller may write into its own
            if "success" in info and "is_success" not in info and not self._told_of_success:
                self._told_of_success = True
                gym.logger.warn('The environment reports info["success"], but groups read info["is_success"]: report that.')
            self._terminated[i], self._truncated[i] = terminated, truncated
        self._over |= self._terminated | self._truncated

        lost_groups = sorted({i // self.group_size for i in lost})
        stepped = [g for g in range(self.n_groups) if valid[self._members(g)].any() and g not in lost_groups]
        ended = [g for g in stepped if self._ends(g, infos)]
        return self._finish_step(rewards, infos, valid, ended, lost_groups)

    # ------------------------------------------------------------------ inside

    def _finish_step(
        self, rewards: np.ndarray, infos: list[dict[str, Any]], valid: np.ndarray, ended: list[int], lost_groups: list[int]
    ) -> GroupStep:
        """Raise the flags of groups that ended, and start these and the lost ones (from the same start) again."""
        terminations, truncations = np.zeros(self.num_envs, dtype=bool), np.zeros(self.num_envs, dtype=bool)
        final_observations, final_infos = {}, {}
        for group in ended:
            by_success = self.stop_on == "success" and self._has_success(group, infos)
            for i in self._members(group):
                # A success counts as an end even where the environment itself would go on.
                terminations[i] = succeeded(infos[i]) if by_success else self._terminated[i]
                truncations[i] = not terminations[i]
                final_observations[i], final_infos[i] = self._observations[i], self._last_infos[i]
            self._draw_start(group)
        start_infos = self._begin([*ended, *lost_groups])
        for group in lost_groups:
            for i in self._members(group):
                rewards[i], valid[i], infos[i] = 0.0, False, {"resampled": True}
        return GroupStep(
            list(self._observations),
            rewards,
            terminations,
            truncations,
            infos,
            valid,
            final_observations,
            final_infos,
            start_infos,
        )

    def _members(self, group: int) -> range:
        return range(group * self.group_size, (group + 1) * self.group_size)

    def _ends(self, group: int, infos: list[dict[str, Any]]) -> bool:
        members = self._members(group)
        if all(self._over[i] for i in members):
            return True
        if self.stop_on == "success":
            return self._has_success(group, infos)
        return self.stop_on == "termination" and any(self._terminated[i] for i in members)

    def _has_success(self, group: int, infos: list[dict[str, Any]]) -> bool:
        return any(succeeded(infos[i]) for i in self._members(group))

    def _group_seeds(self, seeds: Sequence[int | None]) -> list[int | None]:
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries, expected one per environment: {self.num_envs}.")
        per_group = [{seeds[i] for i in self._members(g)} for g in range(self.n_groups)]
        for group, values in enumerate(per_group):
            if len(values) > 1:
                raise ValueError(f"seed differs within group {group} ({sorted(map(str, values))}): members must start alike.")
        return [values.pop() for values in per_group]

    def _draw_start(self, group: int, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Choose seed and options of a group's next start."""
        if self._entropy is None:
            self._entropy = int(np.random.SeedSequence().generate_state(1)[0])
        number = int(self._n_starts[group])
        sequence = np.random.SeedSequence(entropy=self._entropy, spawn_key=(group, number))
        if seed is None:
            seed = self._entropy + group if number == 0 else int(sequence.generate_state(1)[0] >> 1)
        if options is None and self.start_options is not None:
            options = self.start_options(np.random.default_rng(sequence.spawn(1)[0]))
        self._starts[group] = (int(seed), options)
        self._n_starts[group] += 1
        self._restarts[self._members(group)] = 0

    def _begin(self, groups: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Put groups at their current start; processes lost on the way are restarted."""
        infos: dict[int, dict[str, Any]] = {}
        waiting = {i for group in groups for i in self._members(group)}
        while waiting:
            for i in sorted(waiting):
                self._workers[i].send("reset", *self._starts[i // self.group_size])
            for i in sorted(waiting):
                try:
                    self._observations[i], infos[i] = self._receive(i)
                except WorkerLostError as error:
                    self._workers[i].restart()
                    self._count_restart(i, error)
                else:
                    waiting.discard(i)
        for group in groups:
            members = self._members(group)
            self._over[members] = self._terminated[members] = self._truncated[members] = False
            self._check_start(group)
        return infos

    def _check_start(self, group: int) -> None:
        """Members that do not start alike can't be compared: an environment that ignores its seed must not go unnoticed."""
        first, *others = self._members(group)
        for i in others:
            if not _alike(self._observations[first], self._observations[i]):
                raise ValueError(
                    f"Environments {first} and {i} of group {group} differ after reset(seed={self._starts[group][0]}): "
                    "a group needs environments whose seeded resets are deterministic."
                )

    def _receive(self, i: int) -> Any:
        try:
            return self._workers[i].receive(self.timeout)
        except WorkerLostError:
            raise
        except Exception as error:
            error.add_note(f"Raised in environment {i} (member {i % self.group_size} of group {i // self.group_size}).")
            raise

    def _answer(self, i: int) -> Any:
        """The answer to the step that member ``i`` was sent."""
        return self._answers.pop(i) if i in self._answers else self._receive(i)

    def _count_restart(self, i: int, error: WorkerLostError) -> None:
        group = i // self.group_size
        self._restarts[i] += 1
        if self._restarts[i] > MAX_RESTARTS:
            raise RuntimeError(
                f"Environment {i} {error}, after {MAX_RESTARTS} restarts of it in one group (start seed "
                f"{self._starts[group][0]}). See the messages of its process above; raise timeout if it is only slow."
            ) from error
        gym.logger.warn(f"Environment {i} {error}: restarted, group {group} is sampled again from the same start.")

    def _ask(self, command: str, *args: Any, indices: Sequence[int] | None = None) -> tuple[Any, ...]:
        chosen = range(self.num_envs) if indices is None else [range(self.num_envs)[i] for i in indices]
        if len(set(chosen)) < len(chosen):  # a worker's answers to all but its latest question are dropped
            return tuple(self._ask(command, *args, indices=[i])[0] for i in chosen)
        for i in chosen:
            if self._in_flight[i] and i not in self._answers:
                self._answers[i] = self._receive(i)
            self._workers[i].send(command, *args)
        return tuple(self._receive(i) for i in chosen)

    def _make_workers(self, env_fns: Sequence[Callable[[], gym.Env]], subprocess: bool, processes: int | None) -> None:
        if not subprocess:
            made: list[InProcessWorker] = [InProcessWorker(env_fn) for env_fn in env_fns]
            self._workers += made
            if len({id(worker.env.unwrapped) for worker in made}) < len(made):
                raise ValueError(
                    "The functions that make environments gave the same one several times: each must make a new one, as "
                    "lambda: gym.make(...) does and lambda: env does not."
                )
            return
        count = min(processes or self.num_envs, self.num_envs)
        shared = [WorkerProcess(len(env_fns[first::count])) for first in range(count)]
        for i, env_fn in enumerate(env_fns):  # neighbours in different processes: groups and halves spread evenly
            self._workers.append(SubprocessWorker(env_fn, shared[i % count]))

    def _read_spaces(self) -> None:
        descriptions = self._ask("describe")
        self.single_observation_space, self.single_action_space, metadata, self.render_mode, self.spec, statistics = (
            descriptions[0]
        )
        if statistics is not None:
            raise ValueError(
                f"{statistics} updates running statistics, in each member its own, so that members can't be compared: leave "
                "it out, or set its update_running_mean to False. GroupVecNormalize normalises observations of groups."
            )
        for i, (observation_space, action_space, *_) in enumerate(descriptions):
            for name, space, first in (
                ("observation", observation_space, self.single_observation_space),
                ("action", action_space, self.single_action_space),
            ):
                if space != first:
                    raise ValueError(f"Environment {i} has {name} space {space}, environment 0 {first}: all must be equal.")
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {**metadata, "autoreset_mode": AutoresetMode.SAME_STEP}

    def _batch(self, observations: list[Any]) -> Any:
        return stack_observations(self.single_observation_space, observations)


def stack_observations(space: gym.Space, observations: Sequence[Any]) -> Any:
    """Observations of single environments as one batch, in arrays of its own."""
    if isinstance(space, (gym.spaces.Box, gym.spaces.Discrete)):
        return np.stack(observations, dtype=space.dtype)
    out = create_empty_array(space, len(observations), fn=np.empty)
    return concatenate(space, observations, out)  # type: ignore[arg-type]


def _alike(a: Any, b: Any) -> bool:
    """Equal observations; images may differ by the rounding of a renderer."""
    if isinstance(a, dict):
        return all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return all(_alike(x, y) for x, y in zip(a, b, strict=True))
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype == np.uint8 and x.ndim >= 2:
        return x.shape == y.shape and float(np.abs(x.astype(np.int16) - y.astype(np.int16)).mean()) < 0.5
    return np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
