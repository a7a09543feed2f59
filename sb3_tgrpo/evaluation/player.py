"""
Playing many episodes of one policy in several environments at once, without waiting: an observation is answered when it comes,
and an environment that has finished an episode is given the next initial state at once.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from sb3_tgrpo.envs.groups.sync_vector_env import MAX_RESTARTS, succeeded
from sb3_tgrpo.envs.groups.vec_env import find_spec
from sb3_tgrpo.envs.groups.worker import START_TIMEOUT, InProcessWorker, SubprocessWorker, Worker, WorkerLostError, WorkerPool
from sb3_tgrpo.evaluation.protocol import EpisodeRequest


@dataclass
class PlayedEpisode:
    """
    What happened in an episode: sum of rewards, highest stage and progress of the reward program if there is one, info of the
    last step, and pictures of all steps and the initial state if they were asked for.
    """

    request: EpisodeRequest
    success: bool = False
    length: int = 0
    reward: float = 0.0
    max_stage: int | None = None
    n_stages: int | None = None
    progress: float | None = None
    info: dict[str, Any] = field(default_factory=dict, repr=False)
    pictures: list[np.ndarray] = field(default_factory=list, repr=False)

    def add(self, reward: float, info: dict[str, Any]) -> None:
        """Count a step."""
        self.length += 1
        self.info = info
        self.reward += float(reward)
        self.success = self.success or succeeded(info)
        if "success" in info and "is_success" not in info:
            gym.logger.warn(
                f"{self.request.task} reports info['success'], not info['is_success']: its episodes count as failures. Wrap "
                "the environment, or rename the key."
            )
        if "stage" in info:
            self.max_stage = max(self.max_stage or 0, int(info["stage"]))
            self.n_stages = int(info["n_stages"])
            self.progress = max(self.progress or 0.0, float(info["progress"]))


class PictureInInfo(gym.Wrapper):
    """Puts what ``render`` returns into ``info["picture"]``, so that it comes with the step."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, {**info, "picture": self.env.render()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, "picture": self.env.render()}


def env_maker(env: str | Callable[..., gym.Env], kwargs: dict[str, Any], render: bool = False) -> Callable[[], gym.Env]:
    """A function that makes an environment, also in another process; ``render`` wraps it in :class:`PictureInInfo`."""
    # Here, as a worker does not know what this process has registered, and an unknown id should not fail there.
    spec = find_spec(env) if isinstance(env, str) else None

    def make() -> gym.Env:
        import sb3_tgrpo  # noqa: F401  # registers the LIBERO ids in the process that makes the environment

        made = env(**kwargs) if spec is None else gym.make(spec, **kwargs)  # type: ignore[operator]
        return PictureInInfo(made) if render else made

    return make


class PolicyAdapter(Protocol):
    """A policy as the player sees it."""

    batch_size: int
    """Most observations per call of :meth:`act`."""

    def begin(self, request: EpisodeRequest) -> Any:
        """:return: Memory of the policy in this episode, such as a generator or a recurrent state."""
        ...

    def act(self, observations: Sequence[Any], memories: Sequence[Any]) -> Sequence[np.ndarray]:
        """Actions for observations of one task; the memories may be changed."""
        ...


class _Slot:
    """One environment and the episode it is playing."""

    def __init__(self, makers: Mapping[str, Callable[[], gym.Env]], subprocess: bool, pool: WorkerPool | None) -> None:
        self.makers, self.subprocess, self.pool = makers, subprocess, pool
        self.task: str | None = None
        self.worker: Worker | None = None
        self.restarts = 0
        self.fresh = False  # nothing has been simulated yet, which takes longest the first time
        self.memory: Any = None
        self.observation: Any = None

    def begin(self, request: EpisodeRequest, memory: Any) -> None:
        if request.task != self.task:
            self.release()
            make = self.makers[request.task]
            started = SubprocessWorker if self.pool is None else self.pool.take
            self.worker = started(make) if self.subprocess else InProcessWorker(make)
            self.task, self.fresh = request.task, True
        self.episode = PlayedEpisode(request)
        self.memory = memory
        if self.fresh:
            # Answered once the environment is made: waiting for that in the reset's answer would keep the others waiting.
            self.awaited = "describe"
            self._send("describe")
        else:
            self._reset()

    def _reset(self) -> None:
        self.awaited = "reset"
        self._send("reset", self.episode.request.seed, self.episode.request.options)

    def act(self, action: np.ndarray) -> None:
        self.awaited = "step"
        self._send("step", action)

    def _send(self, command: str, *args: Any) -> None:
        assert self.worker is not None
        self.observation = None
        self.sent = time.monotonic()
        self.worker.send(command, *args)

    def receive(self, timeout: float | None) -> tuple[dict[str, Any], bool] | None:
        """:return: Info and whether the episode is over, the observation being kept; None before there is one."""
        assert self.worker is not None
        answer = self.worker.receive(timeout)
        if self.awaited == "describe":
            self._reset()
            return None
        self.fresh = False
        if self.awaited == "reset":
            self.observation, info = answer
            return info, False
        self.observation, reward, terminated, truncated, info = answer
        self.episode.add(reward, info)
        return info, terminated or truncated

    def patience(self, timeout: float | None) -> float | None:
        """Seconds left to wait for the answer; a new process may take longer."""
        if timeout is None:
            return None
        return max(timeout, START_TIMEOUT if self.fresh else 0.0) - (time.monotonic() - self.sent)

    def restart(self, error: WorkerLostError, memory: Any) -> None:
        """Begin the episode again in a new process."""
        assert self.worker is not None
        self.restarts += 1
        request = self.episode.request
        if self.restarts > MAX_RESTARTS:
            raise RuntimeError(
                f"The environment of {request.task} {error}, after {MAX_RESTARTS} restarts in one episode ({request.key}). "
                "See the messages of its process above."
            ) from error
        gym.logger.warn(f"The environment of {request.task} {error}: restarted, the episode begins again.")
        self.worker.restart()
        self.fresh = True
        self.begin(request, memory)

    def release(self) -> None:
        """After an episode: the environment goes back to the pool, if there is one."""
        if self.pool is not None and isinstance(self.worker, SubprocessWorker):
            self.pool.give(self.worker)
            self.worker = None
        self.close()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
        self.worker, self.task = None, None


class EpisodePlayer:
    """
    Plays episodes, each un-grouped and to its own end.

    :param makers: Functions that make the environments, by task; environments report ``info["is_success"]``.
    :param policy: Policy adapter.
    :param n_envs: Environments at once.
    :param subprocess: Whether each environment has a process of its own.
    :param timeout: Seconds to wait for a step or reset of such a process. A process that is late or crashes is restarted,
        and its episode begins again.
    :param max_episode_steps: Steps after which an episode is cut; None: the environment's limit alone.
    :param pool: Where processes are taken from and kept afterwards; None: they are started, and ended with their last episode.
    :param picture: Function of an observation and its info: the picture to keep in :attr:`PlayedEpisode.pictures`.
    :param wants_pictures: Function that decides whether an episode's pictures are kept.
    :raises ValueError: If ``n_envs`` is below 1.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], gym.Env]],
        policy: PolicyAdapter,
        *,
        n_envs: int = 1,
        subprocess: bool = True,
        timeout: float | None = 60.0,
        max_episode_steps: int | None = None,
        pool: WorkerPool | None = None,
        picture: Callable[[Any, dict[str, Any]], np.ndarray] | None = None,
        wants_pictures: Callable[[EpisodeRequest], bool] = lambda request: True,
    ) -> None:
        if n_envs < 1:
            raise ValueError(f"n_envs={n_envs} must be at least 1.")
        self.makers, self.policy = makers, policy
        self.n_envs, self.subprocess = n_envs, subprocess
        self.timeout, self.max_episode_steps, self.pool = timeout, max_episode_steps, pool
        self.picture, self.wants_pictures = picture, wants_pictures

    def play(self, requests: Sequence[EpisodeRequest]) -> Iterator[PlayedEpisode]:
        """Play episodes, which begin in this order; they come as they end, from one environment in the same order."""
        queue = deque(requests)
        slots = [_Slot(self.makers, self.subprocess, self.pool) for _ in range(min(self.n_envs, len(queue)))]
        try:
            for slot in slots:
                self._begin_next(slot, queue)
            busy = list(slots)
            while busy:
                for slot, timeout in self._answered(busy):
                    episode = self._receive(slot, timeout)
                    if episode is not None:
                        if not self._begin_next(slot, queue):
                            busy.remove(slot)
                            slot.release()
                        yield episode
                if self._enough(busy):
                    self._act(busy)
        finally:
            self._close(slots)

    def _close(self, slots: list[_Slot]) -> None:
        if not self.subprocess or not slots:
            for slot in slots:
                slot.close()
            return
        with ThreadPoolExecutor(len(slots)) as threads:  # each process may take seconds to end
            list(threads.map(_Slot.close, slots))

    def _begin_next(self, slot: _Slot, queue: deque[EpisodeRequest]) -> bool:
        """Give the slot an episode, of the task it has loaded if there is one left."""
        if not queue:
            return False
        request = next((request for request in queue if request.task == slot.task), queue[0])
        queue.remove(request)
        slot.restarts = 0
        slot.begin(request, self.policy.begin(request))
        return True

    def _answered(self, busy: list[_Slot]) -> list[tuple[_Slot, float | None]]:
        """Slots with something to receive, or that have kept us waiting for too long; and how long to wait for it now."""
        pending = [slot for slot in busy if slot.observation is None]
        if not self.subprocess:
            return [(slot, None) for slot in pending]
        patience = [slot.patience(self.timeout) for slot in pending]
        soonest = min((max(left, 0.0) for left in patience if left is not None), default=None)
        ready = wait([slot.worker for slot in pending], soonest)  # type: ignore[misc]
        if ready:
            return [(slot, self.timeout) for slot in pending if slot.worker in ready]
        late = (left is not None and left <= (soonest or 0.0) for left in patience)
        return [(slot, 0.0) for slot, is_late in zip(pending, late, strict=True) if is_late]

    def _receive(self, slot: _Slot, timeout: float | None) -> PlayedEpisode | None:
        try:
            answer = slot.receive(timeout)
        except WorkerLostError as error:
            slot.restart(error, self.policy.begin(slot.episode.request))
            return None
        except Exception as error:
            error.add_note(f"Raised in an episode of {slot.episode.request.task}, {slot.episode.request.key}.")
            raise
        if answer is None:
            return None
        info, over = answer
        episode = slot.episode
        if self.picture is not None and self.wants_pictures(episode.request):
            episode.pictures.append(self.picture(slot.observation, info))
        return episode if over or episode.length == self.max_episode_steps else None

    def _enough(self, busy: list[_Slot]) -> bool:
        """Whether to call the policy: on half of the environments at once, while the other half simulates."""
        n_waiting = sum(slot.observation is not None for slot in busy)
        return n_waiting == len(busy) or n_waiting >= min(self.policy.batch_size, max(1, len(busy) // 2))

    def _act(self, busy: list[_Slot]) -> None:
        waiting = [slot for slot in busy if slot.observation is not None]
        for task in dict.fromkeys(slot.task for slot in waiting):
            same = [slot for slot in waiting if slot.task == task]
            for first in range(0, len(same), self.policy.batch_size):
                batch = same[first : first + self.policy.batch_size]
                actions = self.policy.act([slot.observation for slot in batch], [slot.memory for slot in batch])
                for slot, action in zip(batch, actions, strict=True):
                    slot.act(action)
