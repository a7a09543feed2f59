"""On-policy algorithms of Stable-Baselines3 whose saved models go on exactly as they would have."""

import copy
import io
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_tgrpo.files import atomic_path
from sb3_tgrpo.group_env import groups_of


class ResumableAlgorithm(OnPolicyAlgorithm):
    """
    An algorithm on groups whose files hold its random states and the position in the sequence of starts. They are restored
    when ``learn`` begins, unless the model was loaded with another seed.

    A subclass sets ``_before_rollout = self._attributes_to_save()`` where a rollout begins, and None where its steps are used.
    """

    _resume_state: dict[str, Any] | None = None
    _before_rollout: dict[str, Any] | None = None
    """What a file holds while a rollout is under way: the attributes that it changes, as they were before."""

    def _setup_model(self) -> None:
        resume_state = self._resume_state
        super()._setup_model()
        self._resume_state = resume_state  # SB3 seeds here by itself
        self._generator = np.random.default_rng(self.seed)

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed everything random. A model that was loaded then begins there, instead of where the saved one was.

        :param seed: The seed; None changes nothing.
        """
        super().set_random_seed(seed)
        if seed is not None:
            self._generator = np.random.default_rng(seed)
            self._resume_state = None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self._resume_state is not None:
            self._restore(self._resume_state)
        self._resume_state = self._before_rollout = None
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout overshoots; a schedule must not see a negative remainder.
        self._current_progress_remaining = max(0.0, 1.0 - num_timesteps / total_timesteps)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save everything needed to go on: parameters, optimizer, settings, random states and the position in the sequence of
        starts. The file appears whole or not at all. While a rollout is under way, its beginning is saved: no update has used
        its steps, and its groups are sampled again.

        :param path: File to write; ``.zip`` is added to a name without suffix.
        :param exclude: Attributes to leave out.
        :param include: Attributes to keep although they would be left out.
        """
        saved = self._before_rollout or self._attributes_to_save()
        now = {name: self.__dict__[name] for name in saved}
        self.__dict__.update(saved)
        try:
            if isinstance(path, (str, pathlib.Path)):
                path = pathlib.Path(path)
                with atomic_path(path if path.suffix else path.with_name(f"{path.name}.zip")) as unfinished:
                    super().save(unfinished, exclude, include)
            else:
                super().save(path, exclude, include)
        finally:
            self.__dict__.update(now)

    def _attributes_to_save(self) -> dict[str, Any]:
        """The attributes that a rollout changes, with the state to go on from: a loaded model's own until it has gone on."""
        buffers = {name: copy.copy(self.__dict__[name]) for name in ("ep_info_buffer", "ep_success_buffer")}
        return {"num_timesteps": self.num_timesteps, **buffers, "_resume_state": self._resume_state or self._state()}

    def _state(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "torch": th.get_rng_state().numpy().tobytes(),
            "cuda": [state.numpy().tobytes() for state in th.cuda.get_rng_state_all()] if th.cuda.is_available() else [],
            "generator": self._generator.bit_generator.state,
            "starts": None if self.env is None else groups_of(self.env).start_state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        if state.get("seed", self.seed) != self.seed:
            return  # loaded with another seed
        th.set_rng_state(_rng_tensor(state["torch"]))
        if th.cuda.is_available() and len(state["cuda"]) == th.cuda.device_count():
            th.cuda.set_rng_state_all([_rng_tensor(saved) for saved in state["cuda"]])
        self._generator.bit_generator.state = state["generator"]
        groups = None if self.env is None else groups_of(self.env)
        if groups is not None and state["starts"] is not None and len(state["starts"]["n_starts"]) == groups.n_groups:
            groups.set_start_state(state["starts"])

    def _excluded_save_params(self) -> list[str]:
        own = ["_last_obs", "_last_episode_starts", "_generator", "_before_rollout"]
        return [*super()._excluded_save_params(), *own]


def _rng_tensor(state: bytes) -> th.Tensor:
    return th.frombuffer(bytearray(state), dtype=th.uint8)
