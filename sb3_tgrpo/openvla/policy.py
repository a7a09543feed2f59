"""OpenVLA as a policy for TGRPO and for Stable-Baselines3's own PPO and A2C."""

import copy
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space_channels_first
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import FloatSchedule
from torch import nn

from sb3_tgrpo.openvla.actions import BOX_KEY, action_dim, libero_gripper, libero_gripper_inverse, resolve_unnorm_key
from sb3_tgrpo.openvla.cache import FrameCache, frame_keys
from sb3_tgrpo.openvla.checkpoint import Checkpoint, upstream_checkpoint, warn_of_ends
from sb3_tgrpo.openvla.config import OpenVLAConfig
from sb3_tgrpo.openvla.conventions import LIBERO_CAMERA, Conventions
from sb3_tgrpo.openvla.images import LIBERO_SIZE
from sb3_tgrpo.openvla.prompt import Prompts, decode_instruction, prompt_token_ids
from sb3_tgrpo.policies import reconcile_reference

if TYPE_CHECKING:
    from sb3_tgrpo.openvla.lora import StartAdapter
    from sb3_tgrpo.openvla.model import OpenVLA

logger = logging.getLogger(__name__)

_VALUE_HIDDEN = 256
_MAX_PROMPT_BATCHES = 64


class OpenVLAPolicy(BasePolicy):
    """
    OpenVLA with LoRA as the actor, and a value head for algorithms with a critic.

    An action is a sequence of tokens, one per action dimension. Token ids are what is sampled, stored and scored: several
    ids decode to one action, so an action can't be turned back into its tokens. ``squash_output`` is True and
    :meth:`unscale_action` decodes, which Stable-Baselines3's rollout and ``predict`` call before stepping the environment.

    Observations are a ``Dict`` with ``image`` (uint8, either layout) and ``instruction`` (zero-padded UTF-8 bytes), or an
    image alone with ``instruction=`` given. A checkpoint that was trained on the wrist camera reads ``wrist_image`` instead.

    :param observation_space: Observation space.
    :param action_space: Any ``Box`` with as many dimensions as the checkpoint has action tokens.
    :param lr_schedule: Learning rate schedule.
    :param checkpoint: Hub id, folder in the upstream layout, or ``"tiny"``; None = the upstream fine-tune of the
        environment's LIBERO suite.
    :param unnorm_key: Action statistics to decode with; None = the suite's, or the checkpoint's only ones.
    :param statistics: Action statistics by name, used instead of the checkpoint's (supervised fine-tuning has its data's).
    :param lora: ``"language"``, ``"upstream"``, keyword arguments of ``peft.LoraConfig``, or None for full fine-tuning.
    :param value_head: Add a value head (PPO, A2C). Without it values are 0.
    :param adapter: PEFT folder or hub id merged into the checkpoint before training starts.
    :param temperature: Sampling temperature; log-probabilities are of this distribution. None = the adapter's, else 1.
    :param gripper: ``"libero"`` converts OpenVLA's gripper to LIBERO's, ``"none"`` leaves it. None = what the checkpoint
        records, else by the environment.
    :param instruction: Use this instruction instead of the observation's.
    :param dtype: Weights' precision, such as ``"bfloat16"``; None = float32 on CPU, bfloat16 on CUDA.
    :param device: Where to load the weights to; the algorithm then moves the policy to its own device.
    :param quantization: ``"4bit"`` for a 4-bit language model (CUDA, bitsandbytes; experimental).
    :param gradient_checkpointing: Recompute each layer in the backward pass: less memory, a third more time.
    :param vision_cache_mb: Megabytes of image embeddings kept between rollout and update, when the vision side is frozen.
    :param conventions: Conventions of the data that the policy is about to be trained on, instead of the checkpoint's.
    :param use_sde: Must be False; Stable-Baselines3 passes it.
    :param optimizer_class: Optimizer of the trainable parameters.
    :param optimizer_kwargs: Its keyword arguments, without the learning rate.
    :raises ValueError: For arguments that don't fit each other, the spaces or the checkpoint.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
        unnorm_key: str | None = None,
        lora: str | Mapping[str, Any] | None = "language",
        value_head: bool = True,
        *,
        adapter: str | os.PathLike[str] | None = None,
        temperature: float | None = None,
        gripper: Literal["libero", "none"] | None = None,
        instruction: str | None = None,
        dtype: str | None = None,
        device: str = "auto",
        quantization: Literal["4bit"] | None = None,
        gradient_checkpointing: bool = False,
        vision_cache_mb: float = 2048.0,
        statistics: Mapping[str, Any] | None = None,
        conventions: Conventions | None = None,
        use_sde: bool = False,
        optimizer_class: type[th.optim.Optimizer] = th.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
            normalize_images=False,
        )
        from sb3_tgrpo.openvla.lora import AdapterRecord

        _check_arguments(action_space, temperature, gripper, use_sde, vision_cache_mb, lora, quantization)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        suite = getattr(parts.get("instruction"), "suite", None)
        self.lora = lora
        self.instruction = instruction
        self.quantization = quantization
        source = Checkpoint(checkpoint if checkpoint is not None else upstream_checkpoint(suite))
        self.checkpoint = source.name
        record = AdapterRecord() if adapter is None else AdapterRecord.read(adapter)
        trained = (conventions or Conventions()).over(record.conventions).over(source.conventions)
        self._adopt(trained, source, gripper)
        if suite is not None and adapter is None and conventions is None:
            _log_assumptions(source.name)
        self.temperature = record.temperature if temperature is None else temperature
        self._settings = {
            "unnorm_key": unnorm_key, "value_head": value_head, "adapter": adapter, "dtype": dtype, "device": device,
            "quantization": quantization, "gradient_checkpointing": gradient_checkpointing, "vision_cache_mb": vision_cache_mb,
            "statistics": statistics, "conventions": conventions,
        }  # fmt: skip
        self.vla = self._build_model(source, adapter, dtype, device)
        _check_image_size(*self._frame, self.model.config)
        self.model.gradient_checkpointing = gradient_checkpointing
        if statistics is not None:
            self.model.norm_stats = dict(statistics)
        elif record.statistics:
            self.model.norm_stats = {**({} if unnorm_key is None else self.model.norm_stats), **record.statistics}
        own = next(iter(statistics)) if statistics is not None and len(statistics) == 1 else None
        self.unnorm_key = self._resolve_statistics(unnorm_key, suite, own or trained.unnorm_key or source.recorded_unnorm_key)
        self._statistics_were_set = False
        """Whether they came after construction: no constructor argument holds them then, and they are saved."""
        self.value_net = self._build_value_net() if value_head else None
        self.reference_model: OpenVLA | None = None
        self._vision_frozen = self.model.vision_is_frozen
        max_bytes = int(vision_cache_mb * 2**20)
        self._patch_cache = FrameCache(max_bytes if self._vision_frozen else 0)
        # With a trainable vision side only the preprocessed image stays the same.
        self._pixel_cache = FrameCache(0 if self._vision_frozen else max_bytes)
        self._prompt_batches: dict[bytes, Prompts] = {}
        self.register_state_dict_post_hook(OpenVLAPolicy._keep_trained)
        self.register_load_state_dict_pre_hook(OpenVLAPolicy._before_loading)
        self.register_load_state_dict_post_hook(OpenVLAPolicy._after_loading)
        self.optimizer = self.optimizer_class(
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    # ------------------------------------------------------------------ construction

    @classmethod
    def for_env(
        cls,
        env: Any,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
        *,
        lora: str | Mapping[str, Any] | None = None,
        value_head: bool = False,
        **settings: Any,
    ) -> "OpenVLAPolicy":
        """
        A policy to play an environment with, without anything to train.

        :param env: Environment or vector environment, made with :meth:`Checkpoint.env_kwargs`.
        :param checkpoint: Checkpoint, as for the constructor.
        :param lora: Adapter to add, as for the constructor.
        :param value_head: Whether to add a value head.
        :param settings: Further arguments of the constructor.
        """
        spaces_of = env.observation_space, env.action_space
        return cls(*spaces_of, FloatSchedule(0.0), checkpoint, lora=lora, value_head=value_head, **settings)

    def _adopt(self, trained: Conventions, source: Checkpoint, gripper: Literal["libero", "none"] | None) -> None:
        """Choose camera and gripper by what was trained; refuse an environment that shows something else."""
        space = self.observation_space
        self.camera = trained.observation(space) if isinstance(space, spaces.Dict) else None
        self._image_space = _image_space(space, self.camera, self.instruction)
        self._channels_first = is_image_space_channels_first(self._image_space)
        words = space.spaces.get("instruction") if isinstance(space, spaces.Dict) else None
        libero = getattr(words, "suite", None) is not None
        self.assets = getattr(words, "assets", None)
        source.check_assets(self.assets, bool(getattr(words, "assets_by_name", False)), trained)
        shape = self._image_space.shape
        self._frame = (shape[1], shape[2]) if self._channels_first else (shape[0], shape[1])
        trained.check_image_size(*self._frame, f"the checkpoint {source.name!r}")
        self.gripper = gripper or trained.gripper or ("libero" if libero else "none")
        key = trained.image_key or (LIBERO_CAMERA if libero else None)
        self.conventions = replace(trained, assets=self.assets or trained.assets, image_key=key, image_size=self._frame)

    def _build_model(
        self, source: Checkpoint, adapter: str | os.PathLike[str] | None, dtype: str | None, device: str
    ) -> nn.Module:
        from sb3_tgrpo.openvla.loading import place_model, resolve_device, resolve_dtype
        from sb3_tgrpo.openvla.lora import attach_lora, merge_adapter

        # Kept for `export_adapter`: after the merge it cannot be separated from the checkpoint's weights.
        self.start_adapter: StartAdapter | None = None
        if adapter is None:
            model, fingerprint = source.load(dtype, device, self.quantization), ""
        else:
            target = resolve_device(device)
            model = source.load(resolve_dtype(dtype, target), "cpu" if self.quantization else target)
            self.start_adapter = merge_adapter(model, adapter, source.name)
            fingerprint = self.start_adapter.fingerprint
            place_model(
                model, model.dtype, target, self.quantization
            )  # quantised only now: 4-bit weights can't take an adapter up
        self.base_identity: th.Tensor
        identity, self.base_identity_by_ends = (
            hashlib.sha256((text + fingerprint).encode()).digest() for text in (model.identity, model.identity_by_ends)
        )
        self.register_buffer("base_identity", th.tensor(list(identity), dtype=th.uint8))
        if self.lora is None:
            if model.dtype == th.bfloat16:
                warnings.warn(
                    "Full fine-tuning in bfloat16 loses small updates to rounding: pass dtype='float32'.", stacklevel=3
                )
            return model.requires_grad_(True)
        return attach_lora(model, self.lora)

    @property
    def model(self) -> "OpenVLA":
        """The model, inside PEFT's wrapper or not."""
        return self.vla if self.lora is None else self.vla.get_base_model()  # type: ignore[return-value, operator]

    def matches_base(self, identity: bytes) -> bool:
        """
        Whether parameters that were saved with an identity belong to this policy's base.

        :param identity: Bytes of :attr:`base_identity`, or of a version before 0.2.
        """
        if identity == self.base_identity_by_ends:
            warn_of_ends(self.checkpoint)
            return True
        return identity == bytes(self.base_identity.tolist())

    def _resolve_statistics(self, unnorm_key: str | None, suite: str | None, recorded: str | None) -> str:
        """Choose the action statistics; a checkpoint without any decodes into the action space's bounds."""
        assert isinstance(self.action_space, spaces.Box)
        if not self.model.norm_stats:
            self.model.norm_stats = {BOX_KEY: _box_statistics(self.action_space, self.gripper == "libero")}
        key = resolve_unnorm_key(list(self.model.norm_stats), unnorm_key, suite, recorded)
        n_tokens, n_dimensions = action_dim(self.model.norm_stats[key]), int(np.prod(self.action_space.shape))
        if n_tokens != n_dimensions:
            raise ValueError(f"The action space has {n_dimensions} dimensions, the checkpoint's {key!r} has {n_tokens}.")
        self.n_tokens = n_tokens
        return key

    def set_statistics(self, statistics: Mapping[str, Any], unnorm_key: str | None = None) -> None:
        """
        Decode with other action statistics from now on. They are saved and loaded with the parameters.

        :param statistics: By name.
        :param unnorm_key: Which of them; None = the only one.
        :raises ValueError: If they are for another number of dimensions, or the choice is open.
        """
        before = self.model.norm_stats
        self.model.norm_stats = dict(statistics)
        try:
            self.unnorm_key = self._resolve_statistics(unnorm_key, None, None)
        except ValueError:
            self.model.norm_stats = before
            raise
        self._statistics_were_set = True

    def _build_value_net(self) -> nn.Module:
        net = nn.Sequential(nn.Linear(self.model.hidden_size, _VALUE_HIDDEN), nn.Tanh(), nn.Linear(_VALUE_HIDDEN, 1))
        for layer, gain in ((net[0], 2**0.5), (net[2], 1.0)):
            nn.init.orthogonal_(layer.weight, gain=gain)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return net.to(self.model.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.pop("normalize_images", None)
        kept = ("checkpoint", "lora", "temperature", "gripper", "instruction", "optimizer_class", "optimizer_kwargs")
        settings = {**{name: getattr(self, name) for name in kept}, **self._settings}
        return {**data, "lr_schedule": self._dummy_schedule, **settings}

    # ------------------------------------------------------------------ saving: everything trained, nothing frozen

    def _keep_trained(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """After ``state_dict()``: leave out the backbone, which the checkpoint holds."""
        kept = {prefix + name for name in self._saved_names()}
        for name in [name for name in state_dict if name.startswith(prefix) and name not in kept]:
            del state_dict[name]
        if self._statistics_were_set:
            chosen = {"statistics": self.model.norm_stats, "unnorm_key": self.unnorm_key}
            text = json.dumps(chosen, default=lambda array: array.tolist())
            state_dict[prefix + "statistics"] = th.tensor(list(text.encode()), dtype=th.uint8)

    def _before_loading(self, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """Refuse parameters of another base, and make room for a saved reference copy; else this policy's stays."""
        saved = state_dict.get(prefix + "base_identity")
        if saved is not None:
            if not self.matches_base(bytes(saved.tolist())):
                raise ValueError(
                    f"These parameters were trained on another base than {self.checkpoint!r}: pass the checkpoint (and "
                    "adapter) they belong to through policy_kwargs, at loading through custom_objects={'policy_kwargs': ...}."
                )
            state_dict[prefix + "base_identity"] = self.base_identity.clone()
        reconcile_reference(self.reference_model, self.freeze_reference, state_dict, prefix + "reference_model.")
        statistics = state_dict.pop(prefix + "statistics", None)
        if statistics is not None:
            self.set_statistics(**json.loads(bytes(statistics.tolist())))

    def _after_loading(self, incompatible_keys: Any) -> None:
        """The backbone is not missing, it was never saved."""
        saved = self._saved_names()
        incompatible_keys.missing_keys[:] = [name for name in incompatible_keys.missing_keys if name in saved]
        self.clear_caches()

    def _saved_names(self) -> set[str]:
        """Names of the state dict's entries that are saved: trained parameters, the reference's copy, the fingerprint."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        if self.reference_model is not None:
            names |= {f"reference_model.{name}" for name in self.reference_model.state_dict()}
        return names | {"base_identity"}

    def clear_caches(self) -> None:
        """Forget what was computed from frames (the weights have changed in another way than by training)."""
        self._patch_cache.clear()
        self._pixel_cache.clear()

    def _apply(self, fn: Any, recurse: bool = True) -> "OpenVLAPolicy":
        super()._apply(fn, recurse)
        # Prompts lie on the device that the policy was on, embeddings also have its precision.
        self._prompt_batches.clear()
        self.clear_caches()
        return self

    # ------------------------------------------------------------------ observations

    def _images(self, obs: PyTorchObs) -> th.Tensor:
        images = obs[self.camera] if isinstance(obs, dict) else obs  # type: ignore[index]
        if self._channels_first:
            images = images.permute(0, 2, 3, 1)
        return images.to(th.uint8)

    def _patches(self, images: th.Tensor, model: "OpenVLA | None" = None) -> th.Tensor:
        """Projected image embeddings, from the cache while the vision side is frozen."""
        vla, keys = model or self.model, frame_keys(images)

        def preprocessed(rows: list[int]) -> th.Tensor:
            return vla.preprocess(images if len(rows) == len(images) else images[rows])

        if self._vision_frozen:
            with th.no_grad():
                return self._patch_cache.get(keys, lambda rows: vla.project(vla.pixel_values(preprocessed(rows))))
        return vla.project(vla.pixel_values(self._pixel_cache.get(keys, preprocessed)))

    def _inputs(self, obs: PyTorchObs) -> tuple[th.Tensor, Prompts]:
        images = self._images(obs)
        return self._patches(images), self._prompts(obs, len(images))

    def _prompts(self, obs: PyTorchObs, batch: int) -> Prompts:
        if self.instruction is not None:
            rows = [self.instruction.encode()] * batch
        else:
            encoded = obs["instruction"].cpu().numpy().astype(np.uint8)  # type: ignore[index]
            rows = [row.tobytes() for row in encoded]
        key = b"\x00\x00".join(rows)
        if key not in self._prompt_batches:
            if len(self._prompt_batches) >= _MAX_PROMPT_BATCHES:
                self._prompt_batches.clear()
            ids = {row: prompt_token_ids(self.model.tokenizer, decode_instruction(row)) for row in set(rows)}
            self._prompt_batches[key] = self.model.prompts([ids[row] for row in rows])
        return self._prompt_batches[key]

    # ------------------------------------------------------------------ TGRPO's interface

    @th.no_grad()
    def _generate(self, obs: PyTorchObs, temperature: float) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        patches, prompts = self._inputs(obs)
        tokens, log_prob, hidden = self.model.generate_from_patches(patches, prompts, temperature, n_tokens=self.n_tokens)
        return tokens.view(-1, *self.action_space.shape), log_prob, hidden  # type: ignore[misc]

    @th.no_grad()
    def choose_tokens(
        self, obs: PyTorchObs, temperature: float = 0.0, generators: Sequence[th.Generator] | None = None
    ) -> th.Tensor:
        """
        Tokens for evaluation: no cache is used or filled, and each row draws from a generator of its own, so that a row's
        tokens depend on the size of the batch alone, not on the other rows.

        :param obs: Batch of observations.
        :param temperature: 0 is greedy.
        :param generators: One per row; None = torch's global generator.
        :return: Token ids ``(batch, *action shape)``.
        """
        images = self._images(obs)
        patches = self.model.project(self.model.pixel_values(self.model.preprocess(images)))
        prompts = self._prompts(obs, len(images))
        tokens, _, _ = self.model.generate_from_patches(patches, prompts, temperature, generators, n_tokens=self.n_tokens)
        return tokens.view(-1, *self.action_space.shape)  # type: ignore[misc]

    def sample_actions(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """
        Sample tokens at :attr:`temperature`.

        :param obs: Batch of observations.
        :return: Token ids ``(batch, *action shape)`` and float32 log-probabilities ``(batch, K)``.
        """
        return self._generate(obs, self.temperature)[:2]

    def action_log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Score stored tokens under the current parameters at :attr:`temperature`, with gradient.

        :param obs: Batch of observations.
        :param actions: Token ids, any numeric dtype (buffers keep them as float32, which is exact).
        :return: Log-probabilities ``(batch, K)`` and each action's entropy ``(batch,)``, given its own earlier tokens.
        """
        return self._score(self.model, *self._inputs(obs), actions)[:2]

    def _score(
        self, model: "OpenVLA", patches: th.Tensor, prompts: Prompts, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        tokens = actions.reshape(len(patches), -1).to(model.device, th.int64)
        hidden = model.action_hidden(patches, prompts, tokens)
        log_probs = (model.action_head(hidden) / self.temperature).log_softmax(dim=-1)
        chosen = log_probs.gather(2, (tokens - model.config.action_vocab_begin).unsqueeze(2)).squeeze(2)
        entropy = -(log_probs.exp() * log_probs).sum(dim=(1, 2))
        return chosen, entropy, hidden[:, 0]

    @th.no_grad()
    def train(self, mode: bool = True) -> "OpenVLAPolicy":
        """As ``nn.Module.train``; the reference stays in evaluation mode."""
        super().train(mode)
        if self.reference_model is not None:
            self.reference_model.eval()
        return self

    def reference_log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        Score stored tokens under the policy training started from: the adapter switched off, or the frozen copy.

        :return: Log-probabilities ``(batch, K)``.
        :raises RuntimeError: Under full fine-tuning before :meth:`freeze_reference`.
        """
        model = self.reference_model if self.lora is None else self.model
        if model is None:
            raise RuntimeError("There is no reference policy yet: call freeze_reference() before training starts.")
        images = self._images(obs)
        with nullcontext() if self.lora is None else self.vla.disable_adapter():  # type: ignore[operator]
            return self._score(model, self._patches(images, model), self._prompts(obs, len(images)), actions)[0]

    def freeze_reference(self) -> None:
        """
        Make the current policy the reference. With LoRA the reference is the base without the adapter, which is what
        training starts from, and nothing is copied.
        """
        if self.lora is None:
            self.model._graphs.clear()
            self.reference_model = copy.deepcopy(self.model).requires_grad_(False).eval()

    # ------------------------------------------------------------------ Stable-Baselines3's actor-critic interface

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param obs: Batch of observations.
        :param deterministic: Greedy tokens instead of sampled ones; their log-probabilities are at temperature 1 then.
        :return: Token ids ``(batch, *action shape)``, values ``(batch, 1)``, log-probabilities of whole actions ``(batch,)``.
        """
        tokens, log_prob, hidden = self._generate(obs, 0.0 if deterministic else self.temperature)
        return tokens, self._values(hidden), log_prob.sum(dim=1)

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Values ``(batch, 1)``, log-probabilities of whole actions ``(batch,)``, entropies ``(batch,)``."""
        log_prob, entropy, hidden = self._score(self.model, *self._inputs(obs), actions)
        return self._values(hidden), log_prob.sum(dim=1), entropy

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """Values ``(batch, 1)``; zeros without a value head."""
        if self.value_net is None:
            return th.zeros(len(self._images(obs)), 1, device=self.device)
        return self._values(self.model.prompt_hidden(*self._inputs(obs)))

    def _values(self, hidden: th.Tensor) -> th.Tensor:
        if self.value_net is None:
            return hidden.new_zeros(len(hidden), 1, dtype=th.float32)
        return self.value_net(hidden.float())

    def get_distribution(self, obs: PyTorchObs) -> Any:
        """Not implemented: each token's distribution depends on the tokens sampled before it."""
        raise NotImplementedError(
            "An action's tokens are sampled one after the other, so there is no joint distribution to return. "
            "Use sample_actions, action_log_prob or evaluate_actions."
        )

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._generate(observation, 0.0 if deterministic else self.temperature)[0]

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        Token ids to environment actions: bins, the checkpoint's statistics, the gripper's convention, the Box's bounds.

        :param scaled_action: Token ids ``(batch, *action shape)``.
        :return: Actions, float32, of the same shape.
        """
        assert isinstance(self.action_space, spaces.Box)
        tokens = np.asarray(scaled_action).reshape(-1, self.n_tokens)
        actions = self.model.decode_actions(tokens, self.unnorm_key)
        if self.gripper == "libero":
            actions = libero_gripper(actions)
        actions = actions.reshape(np.shape(scaled_action)).astype(np.float32)
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        """
        Environment actions to token ids, as training data is encoded. Not the inverse of sampling: two ids share a bin.

        :param action: ``(batch, *action shape)``.
        :return: Token ids, int64, of the same shape.
        """
        actions = np.asarray(action, dtype=np.float64).reshape(-1, self.n_tokens)
        if self.gripper == "libero":
            actions = libero_gripper_inverse(actions)
        return self.model.encode_actions(actions, self.unnorm_key).reshape(np.shape(action))

    # ------------------------------------------------------------------ results

    def export_adapter(self, folder: str | os.PathLike[str]) -> Path:
        """
        Write the adapter alone as a PEFT folder with a model card; PEFT, and ``adapter=``, load it. It fits the checkpoint
        itself: an adapter that training started from is written within it.

        :param folder: Folder to write to.
        :raises ValueError: Under full fine-tuning, or if the adapter that training started from can't be written within it
            (use :meth:`export_merged`).
        """
        if self.lora is None:
            raise ValueError("There is no adapter under lora=None: use export_merged.")
        from sb3_tgrpo.openvla.lora import AdapterRecord, export_adapter

        base = Checkpoint(self.checkpoint)
        record = AdapterRecord(
            base=base.name if base.is_tiny or base.is_hub_id else Path(base.name).resolve().name,
            base_identity=self.model.identity,
            conventions=self._recorded_conventions(),
            statistics={self.unnorm_key: self.model.statistics(self.unnorm_key)},
            temperature=self.temperature,
        )
        return export_adapter(self.vla, folder, record, self.start_adapter)  # type: ignore[arg-type]

    def _recorded_conventions(self) -> Conventions:
        return replace(self.conventions, gripper=self.gripper, unnorm_key=self.unnorm_key)

    def config_record(self, **more: Any) -> dict[str, Any]:
        """
        Entries of ``config.json`` that record how this policy sees and acts, for ``save_openvla(config=...)``.

        :param more: Further entries below ``sb3_tgrpo``, such as ``sft``.
        """
        return {"sb3_tgrpo": {**self.model.config.raw.get("sb3_tgrpo", {}), **self._recorded_conventions().record(), **more}}

    @th.no_grad()
    def export_merged(
        self, folder: str | os.PathLike[str], dtype: str = "bfloat16", obs: PyTorchObs | None = None
    ) -> float | None:
        """
        Write base plus adapter as one checkpoint in the upstream layout.

        :param folder: Folder to write to.
        :param dtype: Precision on disk.
        :param obs: Observations to compare the written checkpoint on.
        :return: With ``obs``, the share of greedy tokens the rounding on disk changes; else None.
        """
        from sb3_tgrpo.openvla.loading import resolve_dtype, save_openvla
        from sb3_tgrpo.openvla.lora import merged_state_dict

        on_disk = resolve_dtype(dtype, self.device)  # bfloat16, upstream's, rounds the sum of base and adapter
        weights = merged_state_dict(self.model, on_disk)
        save_openvla(self.model, folder, state_dict=weights, config=self.config_record(), dtype=on_disk)
        if obs is None:
            return None
        images = self._images(obs)
        pixels, ids = self.model.pixel_values(self.model.preprocess(images)), self._prompts(obs, len(images)).input_ids
        written = Checkpoint(folder).load(self.model.dtype, self.model.device)
        tokens, _ = self.model.generate_action_tokens(pixels, ids, n_tokens=self.n_tokens)
        # Each token is given the policy's own previous ones.
        ours, theirs = (model.action_logits(pixels, ids, tokens).argmax(-1) for model in (self.model, written))
        return float((ours != theirs).float().mean())

    def push_to_hub(self, repo_id: str, *, merged: bool = False, private: bool = False) -> str:
        """
        Upload the adapter (or the merged checkpoint) to the Hugging Face hub, with the user's stored login.

        :param repo_id: ``owner/name``.
        :param merged: Upload the merged bfloat16 checkpoint instead of the adapter.
        :param private: Make a new repository private.
        :return: The repository's address.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as folder:
            if merged or self.lora is None:
                self.export_merged(folder)
            else:
                self.export_adapter(folder)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload from sb3-tgrpo")
        return str(url)


def _image_space(space: spaces.Space, key: str | None, instruction: str | None) -> spaces.Box:
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    image = space if key is None else parts.get(key)
    if not isinstance(image, spaces.Box) or image.dtype != np.uint8 or len(image.shape) != 3 or 3 not in image.shape:
        raise ValueError(f"OpenVLAPolicy needs uint8 RGB images (an 'image' entry, or the observation itself), got {space}.")
    if instruction is None and "instruction" not in parts:
        raise ValueError("The observation has no 'instruction': pass policy_kwargs=dict(instruction='...').")
    return image


def _check_image_size(height: int, width: int, config: OpenVLAConfig) -> None:
    """The checkpoint's image recipe starts from frames of a given size."""
    area = config.pipeline == "area"
    side = config.image_size if area else LIBERO_SIZE
    if min(height, width) < side if area else (height, width) != (side, side):
        read, size = (f"frames of at least {side}x{side}", f"{side} or more") if area else (f"{side}x{side} frames", f"{side}")
        raise ValueError(
            f"The checkpoint reads {read}, not {height}x{width}: make the environment, or collect the demonstrations, with "
            f"image_size={size}."
        )


def _check_arguments(
    action_space: spaces.Space,
    temperature: float | None,
    gripper: str | None,
    use_sde: bool,
    vision_cache_mb: float,
    lora: str | Mapping[str, Any] | None,
    quantization: str | None,
) -> None:
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"OpenVLAPolicy needs a Box action space, got {action_space}.")
    if use_sde:
        raise ValueError("use_sde=True has no meaning for token policies.")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; predict(deterministic=True) is greedy.")
    if gripper not in (None, "libero", "none"):
        raise ValueError(f"gripper must be 'libero', 'none' or None, got {gripper!r}.")
    if vision_cache_mb < 0:
        raise ValueError(f"vision_cache_mb must be at least 0, got {vision_cache_mb}.")
    if lora is None and quantization is not None:
        raise ValueError("lora=None trains the base, which can't be quantised: pass quantization=None or an adapter.")


def _box_statistics(space: spaces.Box, libero: bool) -> dict[str, Any]:
    low, high = space.low.flatten().astype(float), space.high.flatten().astype(float)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"A checkpoint without action statistics needs a bounded action space, got {space}.")
    mask = np.ones(len(low), dtype=bool)
    if libero:
        low[-1], high[-1], mask[-1] = 0.0, 1.0, False
    return {"action": {"q01": low.tolist(), "q99": high.tolist(), "mask": mask.tolist()}}


@cache
def _log_assumptions(checkpoint: str) -> None:
    """One line in a process."""
    if (text := Checkpoint(checkpoint).assumptions()) is not None:
        logger.warning(text)
