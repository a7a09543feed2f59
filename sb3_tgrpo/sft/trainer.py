"""Supervised fine-tuning (behaviour cloning) of OpenVLA policies on demonstrations."""

import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import FloatSchedule, configure_logger, set_random_seed
from torch.nn import functional as F

from sb3_tgrpo.files import atomic_path
from sb3_tgrpo.openvla.actions import dimension_names
from sb3_tgrpo.openvla.augment import Augmentation, augment, finish
from sb3_tgrpo.openvla.conventions import Conventions
from sb3_tgrpo.openvla.images import LIBERO_SIZE
from sb3_tgrpo.openvla.loading import resolve_device, resolve_dtype, save_openvla
from sb3_tgrpo.openvla.policy import OpenVLAPolicy
from sb3_tgrpo.openvla.prompt import prompt_token_ids
from sb3_tgrpo.processes import Processes
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.settings import check_number
from sb3_tgrpo.sft.dataset import DemonstrationDataset
from sb3_tgrpo.sft.loop import BestCheckpoint, FrameStore, ParameterEMA, cosine_rate, epoch_order
from sb3_tgrpo.sft.settings import SFTSettings
from sb3_tgrpo.sft.statistics import check_range
from sb3_tgrpo.version import __version__

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"
SETTINGS_FILE = "training_settings.json"
_MEAN_IMAGE_FRAMES = 512


class SFTError(RuntimeError):
    """A training that can't go on, with the remedy."""


@dataclass
class _Run:
    """A call of :meth:`SFT.learn`: the schedule ends after ``total_steps`` updates, the call after ``last``."""

    total_steps: int
    last: int
    eval_every: int
    save_every: int
    log_interval: int
    state_file: Path | None
    callback: Callable[["SFT"], bool | None] | None
    sums: dict[str, list[float]] = field(default_factory=dict)


class SFT:
    """
    Behaviour cloning: cross-entropy of the demonstrated action's tokens, teacher-forced, over the ids that a policy samples
    from. The result is a checkpoint folder in the upstream layout, which ``OpenVLAPolicy(checkpoint=folder)`` loads and
    TGRPO starts from.

    Example::

        dataset = DemonstrationDataset("demos.hdf5")
        tiny = dict(checkpoint="tiny", lora=None)
        sft = SFT("OpenVLAPolicy", dataset, learning_rate=2e-3, ema_decay=0.995, policy_kwargs=tiny)
        sft.learn(2_000, progress_bar=True)
        sft.save_checkpoint("start")

    Every batch, and every draw of the augmentation, is a function of the seed and the step number: a run that is stopped
    and resumed ends in the same weights as one that is not.

    Run under ``accelerate launch`` or ``torchrun``, each process takes its share of every batch and gradients are summed:
    the update does not depend on the number of processes. Such a program ends with ``sft.processes.finish()``.

    :class:`~sb3_tgrpo.sft.settings.SFTSettings` describes the arguments from ``learning_rate`` to ``frame_cache_mb``, and
    ``seed``.

    :param policy: ``"OpenVLAPolicy"``, a subclass, or an instance.
    :param dataset: Demonstrations to imitate.
    :param tensorboard_log: Folder of the TensorBoard log.
    :param policy_kwargs: Keyword arguments of the policy, such as ``checkpoint`` and ``lora``.
    :param verbose: 0 none, 1 info.
    :param device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
    :raises ValueError: If settings, data and checkpoint do not fit together.
    """

    policy: OpenVLAPolicy

    def __init__(
        self,
        policy: str | type[OpenVLAPolicy] | OpenVLAPolicy,
        dataset: DemonstrationDataset,
        learning_rate: float = SFTSettings.learning_rate,
        batch_size: int = SFTSettings.batch_size,
        micro_batch_size: int | None = SFTSettings.micro_batch_size,
        *,
        schedule: Literal["cosine", "constant"] = SFTSettings.schedule,
        warmup_steps: int = SFTSettings.warmup_steps,
        weight_decay: float = SFTSettings.weight_decay,
        max_grad_norm: float | None = SFTSettings.max_grad_norm,
        ema_decay: float | None = SFTSettings.ema_decay,
        augmentation: bool = SFTSettings.augmentation,
        center_images: bool = SFTSettings.center_images,
        statistics: Literal["data", "checkpoint"] = SFTSettings.statistics,
        validation_fraction: float = SFTSettings.validation_fraction,
        frame_cache_mb: float = SFTSettings.frame_cache_mb,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int = SFTSettings.seed,
        device: str = "auto",
    ) -> None:
        self.settings = SFTSettings(
            learning_rate, batch_size, micro_batch_size, schedule, warmup_steps, weight_decay, max_grad_norm, ema_decay,
            augmentation, center_images, statistics, validation_fraction, frame_cache_mb, seed,
        )  # fmt: skip
        self.dataset = dataset
        self.tensorboard_log = tensorboard_log
        self.verbose = verbose
        self.num_updates = 0
        self.seconds = 0.0
        """Time spent training, over all runs of a resumed training."""
        self.history: list[dict[str, float]] = []
        """One entry per validation: step, seconds, and the numbers logged as ``val/...``."""
        self.processes = Processes(resolve_device(device))
        self.training, self.validation = dataset.split(validation_fraction, seed)
        self._train_frames = np.concatenate([dataset.frames_of(k) for k in self.training])
        self._validation_frames = np.concatenate([dataset.frames_of(k) for k in self.validation] or [np.array([], dtype=int)])
        if batch_size > len(self._train_frames):
            raise ValueError(f"batch_size={batch_size} exceeds the {len(self._train_frames)} training frames: lower it.")
        set_random_seed(seed)  # LoRA's initial values come from torch's global generator
        self.policy = self._make_policy(policy, policy_kwargs or {})
        self.policy.to(self.processes.device)
        self._check_policy()
        self.tokens = th.from_numpy(self.policy.scale_action(dataset.actions))
        self._frames = FrameStore(dataset, self.policy, frame_cache_mb)
        if center_images:
            self._subtract_mean_image()
        self._trained = {name: p for name, p in self.policy.named_parameters() if p.requires_grad and "value_net" not in name}
        self.average = ParameterEMA(self._trained, ema_decay) if ema_decay is not None else None
        self._best = BestCheckpoint()
        self._restored: dict[str, float] | None = None
        self._logger: Logger | None = None
        self._prompt_ids: dict[str, list[int]] = {}
        self._fixed_settings = {
            **asdict(self.settings),
            "policy_kwargs": json.loads(json.dumps(policy_kwargs or {}, default=str)),
            "weight_decay": _weight_decay(self.policy),  # policy_kwargs may hold another one
            "demonstrations": dataset.fingerprint,
            "base": bytes(self.policy.base_identity.tolist()).hex(),
        }
        for name in ("micro_batch_size", "frame_cache_mb"):  # results do not depend on them
            del self._fixed_settings[name]

    # ------------------------------------------------------------------ construction

    def _make_policy(self, policy: str | type[OpenVLAPolicy] | OpenVLAPolicy, kwargs: dict[str, Any]) -> OpenVLAPolicy:
        weight_decay, from_data = self.settings.weight_decay, self.settings.statistics == "data"
        if isinstance(policy, OpenVLAPolicy):
            if kwargs:
                raise ValueError(f"policy_kwargs={kwargs} have no effect on a policy that is already built: pass its class.")
            own = _weight_decay(policy)
            if weight_decay != own:
                raise ValueError(
                    f"weight_decay={weight_decay} has no effect on a policy that is already built, whose optimizer has {own}: "
                    f"pass weight_decay={own}, or the policy's class."
                )
            if from_data:
                policy.set_statistics({self.dataset.name: self.dataset.statistics})
            policy.conventions = self._conventions().over(policy.conventions)
            return policy
        if policy == "OpenVLAPolicy":
            policy = OpenVLAPolicy
        if not (isinstance(policy, type) and issubclass(policy, OpenVLAPolicy)):
            raise ValueError(f"policy must be 'OpenVLAPolicy', a subclass or an instance of it, got {policy!r}.")
        settings = {
            "value_head": False, "gripper": self.dataset.gripper, "device": str(self.processes.device),
            "conventions": self._conventions(), **kwargs,
        }  # fmt: skip
        if from_data:
            settings["statistics"] = {self.dataset.name: self.dataset.statistics}
        settings["optimizer_kwargs"] = {"weight_decay": weight_decay, **(kwargs.get("optimizer_kwargs") or {})}
        spaces = self.dataset.observation_space, self.dataset.action_space
        return policy(*spaces, FloatSchedule(self.settings.learning_rate), **settings)

    def _conventions(self) -> Conventions:
        """What the demonstrations mean, which the checkpoint records."""
        data = self.dataset
        key = data.name if self.settings.statistics == "data" else None
        return Conventions(data.assets, data.gripper, data.image_key.removeprefix("obs/"), data.image_shape[:2], key)

    def _check_policy(self) -> None:
        policy, dataset = self.policy, self.dataset
        if policy.gripper != dataset.gripper:
            raise ValueError(f"The policy has gripper={policy.gripper!r}, the dataset gripper={dataset.gripper!r}: use one.")
        if policy.n_tokens != dataset.actions.shape[1]:
            raise ValueError(
                f"The policy's actions have {policy.n_tokens} dimensions, the dataset's {dataset.actions.shape[1]}: this is a "
                "dataset for another action space."
            )
        if self.settings.statistics == "checkpoint":
            source = f"The checkpoint {policy.checkpoint!r} ({policy.unnorm_key})"
            check_range(policy.model.statistics(policy.unnorm_key), dataset.actions, dataset.gripper, source)
        config, (height, width) = policy.model.config, dataset.image_shape[:2]
        if config.pipeline == "libero" and (height, width) != (LIBERO_SIZE, LIBERO_SIZE):
            raise ValueError(
                f"The checkpoint {policy.checkpoint!r} reads {LIBERO_SIZE}x{LIBERO_SIZE} frames, the demonstrations have "
                f"{height}x{width}. Collect them at that size; LIBERO's own files must be replayed, as OpenVLA did."
            )
        if min(height, width) < config.image_size:
            raise ValueError(f"The model reads {config.image_size} pixels, the demonstrations have {height}x{width}.")
        if self.settings.center_images and policy.lora is not None:
            raise ValueError("center_images=True changes the base's weights, which needs lora=None.")

    def _subtract_mean_image(self) -> None:
        from sb3_tgrpo.openvla.tiny import subtract_mean_image

        picked = np.linspace(0, len(self._train_frames) - 1, min(_MEAN_IMAGE_FRAMES, len(self._train_frames))).astype(int)
        total: th.Tensor | float = 0.0
        for chunk in np.array_split(self._train_frames[picked], max(len(picked) // 64, 1)):
            pixels = finish(self._frames.get(chunk), self.policy.model.config.pipeline)
            total = total + self.policy.model.pixel_values(pixels).double().sum(dim=0)
        subtract_mean_image(self.policy.model, (cast(th.Tensor, total) / len(picked)).float())

    # ------------------------------------------------------------------ logging

    @property
    def logger(self) -> Logger:
        """Stable-Baselines3's logger."""
        if self._logger is None:
            self._logger = configure_logger(self.verbose if self.processes.is_main else 0, self._tensorboard(), "SFT", True)
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Use another logger."""
        self._logger = logger

    def _tensorboard(self) -> str | None:
        return self.tensorboard_log if self.processes.is_main else None

    # ------------------------------------------------------------------ training

    def learn(
        self,
        total_steps: int,
        *,
        folder: str | os.PathLike[str] | None = None,
        resume: bool = False,
        eval_every: int | None = None,
        save_every: int | None = None,
        patience: int | None = None,
        log_interval: int = 50,
        callback: Callable[["SFT"], bool | None] | None = None,
        progress_bar: bool = False,
        stop_at: int | None = None,
    ) -> "SFT":
        """
        Train.

        :param total_steps: Updates in all; the learning rate's schedule ends there.
        :param folder: Folder of the state for resuming. None: no state is kept.
        :param resume: Whether to go on from the state in ``folder``, if there is one. A damaged state counts as none.
        :param eval_every: Updates between validations; None: a twentieth of the training.
        :param save_every: Updates between writes of the state; None: at each validation.
        :param patience: Number of validations without a lower validation loss after which training stops. The best weights are
            then restored.
        :param log_interval: Updates between log entries.
        :param callback: Function that is called after each validation; training stops if it returns False.
        :param progress_bar: Whether to show a progress bar (needs tqdm).
        :param stop_at: Update after which to stop, to resume later with the same schedule.
        :return: Itself.
        :raises ValueError: If ``folder`` holds the state of other settings, or of any without ``resume``.
        :raises SFTError: If a gradient is not finite.
        """
        for name, value in (("total_steps", total_steps), ("log_interval", log_interval)):
            check_number(name, value, int)
        for name, count in (("eval_every", eval_every), ("save_every", save_every), ("patience", patience)):
            check_number(name, count, int, optional=True)
        if patience is not None and not len(self._validation_frames):
            raise ValueError(f"patience={patience} needs validation data: pass validation_fraction above 0.")
        eval_every = eval_every or max(total_steps // 20, 1)
        last, state_file = min(total_steps, stop_at or total_steps), Path(folder) / STATE_FILE if folder is not None else None
        run = _Run(total_steps, last, eval_every, save_every or eval_every, log_interval, state_file, callback)
        self._open(run, resume)
        self._best.begin(patience)
        self._restored = None
        began = time.perf_counter() - self.seconds
        self.policy.set_training_mode(True)
        with _progress(last, self.num_updates) if progress_bar and self.processes.is_main else nullcontext() as bar:
            done = False
            while self.num_updates < last and not self._best.patience_is_over and not done:
                for key, number in self._update(total_steps).items():
                    run.sums.setdefault(key, []).append(number)
                self.seconds = time.perf_counter() - began
                if bar is not None:
                    bar.update()
                done = self._validate_and_save(run)
        if self._best.patience_is_over and self._best.weights:
            self._restore(self._best)
        self.policy.set_training_mode(False)
        return self

    def _open(self, run: _Run, resume: bool) -> None:
        """Claim the folder for these settings, and go on from its state."""
        if run.state_file is None:
            if resume:
                raise ValueError("resume=True needs the folder to resume from: pass folder.")
            return
        folder, exists = run.state_file.parent, run.state_file.exists()
        if exists and not resume:
            raise ValueError(f"{folder} holds a training already: pass resume=True, or another folder.")
        if self.processes.is_main:
            settings = {**self._fixed_settings, "total_steps": run.total_steps}
            RunFolder(folder).claim(SETTINGS_FILE, settings, results=[STATE_FILE], upgrade=self._with_todays_base)
        if exists:
            self._load_state(run.state_file)

    def _with_todays_base(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record whose base is the policy's by the fingerprints of an older version, with the fingerprint of today."""
        same = self.policy.matches_base(bytes.fromhex(record.get("base", "")))
        return {**record, "base": self._fixed_settings["base"]} if same else record

    def _validate_and_save(self, run: _Run) -> bool:
        """What is due after an update: log entry, validation, state. Returns whether training ends."""
        at = self.num_updates
        done = at == run.last
        if at % run.log_interval == 0 or done:
            self._log_training(run.sums)
            run.sums = {}
        if at % run.eval_every == 0 or done:
            if len(self._validation_frames):
                metrics = self.validate()
                self.history.append({"step": at, "seconds": self.seconds, **metrics})
                self._best.offer(self.history[-1], self._snapshot)
                self._log_validation(metrics)
            if run.callback is not None and run.callback(self) is False:
                done = True
            self.policy.set_training_mode(True)
        if run.state_file is not None and (at % run.save_every == 0 or done or self._best.patience_is_over):
            self._save_state(run.state_file)
        return done

    def _rate(self, total_steps: int) -> float:
        settings = self.settings
        rate = settings.learning_rate * min(1.0, (self.num_updates + 1) / (settings.warmup_steps + 1))
        return rate if settings.schedule == "constant" else rate * cosine_rate(self.num_updates / total_steps)

    def _batch(self, step: int) -> np.ndarray:
        """Frames of one update: consecutive batches of shuffled epochs."""
        frames, size = self._train_frames, self.settings.batch_size
        epoch, position = divmod(step, len(frames) // size)
        order = epoch_order(len(frames), self.settings.seed, epoch)
        return frames[order[position * size : (position + 1) * size]]

    def _update(self, total_steps: int) -> dict[str, float]:
        settings, batch = self.settings, self._batch(self.num_updates)
        optimizer = self.policy.optimizer
        rate = self._rate(total_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        generator = th.Generator().manual_seed((settings.seed * 1_000_003 + self.num_updates) % 2**63)
        draw = Augmentation.draw(len(batch), generator) if settings.augmentation else None
        n_tokens = len(batch) * self.policy.n_tokens
        totals = th.zeros(2, dtype=th.float64, device=self.policy.device)
        for rows in self.processes.share(len(batch), settings.micro_batch_size):
            logits, target = self._logits(batch[rows], draw[rows] if draw is not None else None)
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / n_tokens
            loss.backward()
            totals += th.stack([loss.detach().double(), (logits.argmax(-1) == target).double().sum() / n_tokens])
        parameters = list(self._trained.values())
        self.processes.sum_gradients(parameters)
        self.processes.sum_(totals)
        norm = th.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or float("inf"))
        if not th.isfinite(norm):
            raise SFTError(
                f"The gradient is not finite at update {self.num_updates + 1} (loss {float(totals[0]):.4g}): lower the "
                f"learning_rate (now {rate:.3g}) or train in float32."
            )
        optimizer.step()
        self.num_updates += 1
        if self.average is not None:
            self.average.update(self.num_updates)
        return {"loss": float(totals[0]), "token_accuracy": float(totals[1]), "grad_norm": float(norm), "learning_rate": rate}

    def _logits(self, frames: np.ndarray, draw: Augmentation | None = None) -> tuple[th.Tensor, th.Tensor]:
        """Teacher-forced logits ``(batch, K, bins)`` and the demonstrated bins ``(batch, K)``."""
        model = self.policy.model
        prepared = self._frames.get(frames)
        pipeline = model.config.pipeline
        pixels = augment(prepared, draw, pipeline) if draw is not None else finish(prepared, pipeline)
        tokens = self.tokens[th.from_numpy(frames)].to(model.device)
        logits = model.action_logits(model.pixel_values(pixels), self._prompts(frames), tokens)
        return logits, tokens - model.config.action_vocab_begin

    def _prompts(self, frames: np.ndarray) -> list[list[int]]:
        words = self.dataset.instruction_of(frames)
        for instruction in set(words) - set(self._prompt_ids):
            self._prompt_ids[instruction] = prompt_token_ids(self.policy.model.tokenizer, instruction)
        return [self._prompt_ids[instruction] for instruction in words]

    # ------------------------------------------------------------------ validation

    @th.no_grad()
    def validate(self, frames: np.ndarray | None = None) -> dict[str, float]:
        """
        How well frames are imitated, teacher-forced, without augmentation, with the averaged weights if there are any.

        :param frames: Indices within the dataset; None: the validation frames.
        :return: ``loss`` (nats per token), ``token_accuracy``, and for each action dimension ``accuracy_x``, ``l1_x`` (mean
            absolute error of the greedy action in the action's units) and ``entropy_x`` (nats).
        :raises ValueError: If there are no frames.
        """
        frames = self._validation_frames if frames is None else np.asarray(frames)
        if not len(frames):
            raise ValueError("There are no validation frames: validation_fraction is 0.")
        self.policy.set_training_mode(False)
        n_dimensions = self.policy.n_tokens
        totals = th.zeros(4, n_dimensions, dtype=th.float64, device=self.policy.device)
        with self.averaged_weights():
            for rows in self.processes.share(len(frames), self.settings.micro_batch_size or self.settings.batch_size):
                part = frames[rows]
                logits, target = self._logits(part)
                log_prob = logits.log_softmax(-1)
                choice = logits.argmax(-1)
                tokens = (choice + self.policy.model.config.action_vocab_begin).cpu().numpy()
                error = np.abs(self.policy.unscale_action(tokens) - self.dataset.actions[part]).sum(axis=0)
                totals[0] -= log_prob.gather(2, target.unsqueeze(2)).squeeze(2).double().sum(dim=0)
                totals[1] += (choice == target).double().sum(dim=0)
                totals[2] += th.from_numpy(error).to(totals.device)
                totals[3] -= (log_prob.exp() * log_prob).sum(-1).double().sum(dim=0)
        self.processes.sum_(totals)
        means = (totals / len(frames)).cpu().numpy()
        metrics = {"loss": float(means[0].mean()), "token_accuracy": float(means[1].mean())}
        for k, name in enumerate(dimension_names(n_dimensions)):
            metrics |= {f"accuracy_{name}": float(means[1, k]), f"l1_{name}": float(means[2, k])}
            metrics[f"entropy_{name}"] = float(means[3, k])
        return metrics

    def _log_training(self, sums: dict[str, list[float]]) -> None:
        for key, values in sums.items():
            self.logger.record(f"train/{key}", float(np.mean(values)))
        self.logger.record("train/epoch", self.num_updates * self.settings.batch_size / len(self._train_frames))
        self.logger.record("time/seconds", self.seconds)
        self.logger.dump(self.num_updates)

    def _log_validation(self, metrics: dict[str, float]) -> None:
        for key, value in metrics.items():
            self.logger.record(f"val/{key}", value)
        self.logger.dump(self.num_updates)

    # ------------------------------------------------------------------ weights, states, results

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the policy has the averaged weights (its own, without ``ema_decay``)."""
        if self.average is None:
            yield
            return
        with self.average.applied(self._trained):
            yield

    def _snapshot(self) -> dict[str, th.Tensor]:
        source: dict[str, Any] = self.average.values if self.average is not None else self._trained
        return {name: tensor.detach().clone() for name, tensor in source.items()}

    @th.no_grad()
    def _restore(self, best: BestCheckpoint) -> None:
        for name, tensor in best.weights.items():
            self._trained[name].copy_(tensor)
            if self.average is not None:
                self.average.values[name].copy_(tensor)
        self._restored = best.entry

    def _save_state(self, path: Path) -> None:
        if not self.processes.is_main:
            return
        state = {
            "num_updates": self.num_updates,
            "seconds": self.seconds,
            "history": json.dumps(self.history),
            "parameters": {name: tensor.detach().cpu() for name, tensor in self._trained.items()},
            "average": None if self.average is None else {name: t.cpu() for name, t in self.average.values.items()},
            "optimizer": self.policy.optimizer.state_dict(),
            "best": self._best.state(),
        }
        with atomic_path(path) as unfinished:
            th.save(state, unfinished)

    @th.no_grad()
    def _load_state(self, path: Path) -> None:
        try:
            with path.open("rb") as file:  # what the system refuses is no damage
                state = th.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # by kind of damage: RuntimeError, EOFError, UnpicklingError
            logger.warning("%s is damaged (%s): the training starts anew.", path, str(error).partition("\n")[0])
            return
        for name, tensor in state["parameters"].items():
            self._trained[name].copy_(tensor)
        if self.average is not None:
            for name, tensor in state["average"].items():
                self.average.values[name].copy_(tensor)
        self.policy.optimizer.load_state_dict(state["optimizer"])
        self.num_updates, self.seconds = int(state["num_updates"]), float(state["seconds"])
        self.history = json.loads(state["history"])
        self._best.load_state(state["best"])

    def save_checkpoint(self, folder: str | os.PathLike[str], *, dtype: str | None = None, command: str | None = None) -> Path:
        """
        Write the policy as a checkpoint folder in the upstream layout, adapters merged, with the averaged weights if there
        are any. ``config.json`` records under ``sb3_tgrpo`` the data's conventions (assets, gripper, camera, image size,
        statistics), and under ``sb3_tgrpo.sft`` the demonstrations, the settings, the command, and the number of updates and
        the validation of the weights that are written: the best ones, if ``patience`` ended the training, else the last.

        :param folder: Checkpoint folder, created if needed.
        :param dtype: Precision on disk; None = the model's.
        :param command: Command that made it; None = this process's command line.
        :return: The folder.
        """
        from sb3_tgrpo.openvla.lora import merged_state_dict

        policy = self.policy
        model = policy.model
        on_disk = model.dtype if dtype is None else resolve_dtype(dtype, model.device)
        validation = self._restored or (self.history[-1] if self.history else {})
        record = {
            "version": __version__,
            "command": command if command is not None else shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "base": policy.checkpoint,
            "demonstrations": self.dataset.describe(),
            "settings": self._fixed_settings,
            "updates": int(validation["step"]) if self._restored else self.num_updates,
            "seconds": round(self.seconds, 1),
            "validation": validation or None,
        }
        stats = {policy.unnorm_key: model.statistics(policy.unnorm_key)}
        if not self.processes.is_main:
            return Path(folder)
        # Written inside: on the CPU in float32 the merged weights are the parameters themselves, not copies.
        with self.averaged_weights():
            weights = merged_state_dict(model, on_disk)
            config = policy.config_record(sft=record)
            return save_openvla(model, folder, state_dict=weights, config=config, norm_stats=stats, dtype=on_disk)


def _weight_decay(policy: OpenVLAPolicy) -> float:
    return float(policy.optimizer.param_groups[0].get("weight_decay", 0.0))


def _progress(total: int, initial: int) -> AbstractContextManager[Any]:
    from tqdm import tqdm

    return tqdm(total=total, initial=initial, unit="update")
