"""Checks of a checkpoint and of the policy made from it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from sb3_tgrpo.doctor.finding import Check, DoctorContext, Found, MemoryPlan
from sb3_tgrpo.doctor.memory import free_memory, memory_parts
from sb3_tgrpo.envs.libero.tasks import get_task
from sb3_tgrpo.envs.spaces import encode_instruction
from sb3_tgrpo.openvla.checkpoint import Checkpoint
from sb3_tgrpo.openvla.folder import open_shard, weight_files
from sb3_tgrpo.openvla.prompt import prompt_token_ids

MAX_RATIO_ERROR = {th.float32: 1e-4, th.float64: 1e-4, th.bfloat16: 0.15}
_FRAMES = 4
_DOWNLOAD = "It is downloaded (15 GB at full size) when it is first used."
_BLACK_WHITE = 1e-3

# A prompt's recorded ids by size of the vocabulary: under Llama's tokenizer and under the tiny checkpoint's.
_PROMPT = "put both the alphabet soup and the tomato sauce in the basket"
GOLDEN_IDS = {
    32064: [
        1, 512, 29901, 1724, 3158, 881, 278, 19964, 2125, 304, 1925, 1716, 278, 22968, 22300, 322, 278, 6454, 1219, 12507, 346,
        297, 278, 25972, 29973, 13, 3744, 29901, 29871,
    ],
    1088: [1, 260, 318, 272, 330, 263, 326, 264, 330, 333, 324, 292, 330, 267, 261, 259],
}  # fmt: skip


def _of_checkpoint(
    name: str, files: bool = True, plays: bool = False
) -> Callable[[Callable[[DoctorContext, Checkpoint], Found]], Check]:
    """
    Carry a check out where there is a usable checkpoint.

    :param files: Whether it reads files of the checkpoint; else upstream's checkpoints need not be on this machine.
    :param plays: Whether it loads the model, which must fit into memory.
    """

    def decorate(check: Callable[[DoctorContext, Checkpoint], Found]) -> Check:
        def run(context: DoctorContext) -> Found:
            if (checkpoint := context.checkpoint) is None:
                return "not checked", "no checkpoint was named", "pass --checkpoint to check one"
            problem = problem_of(checkpoint)
            if problem and name != "checkpoint":
                return "not checked", "see the row of the checkpoint", ""
            if not (problem or checkpoint.is_here or (checkpoint.is_upstream and not files)):
                return "not checked", f"{checkpoint} is not on this machine yet", _DOWNLOAD
            if plays and (reason := _too_large(context, checkpoint)):
                return "not checked", reason, "Check it on the machine that it will run on."
            return check(context, checkpoint)

        return Check(name, run)

    return decorate


def _too_large(context: DoctorContext, checkpoint: Checkpoint) -> str:
    needed = memory_parts(checkpoint.config, MemoryPlan(lora=None), context.device, "")["weights"]
    free, where = free_memory(context.device)
    return f"loading takes {needed / 1e9:.1f} GB, {where} has {free / 1e9:.1f} GB free" if needed > free else ""


def problem_of(checkpoint: Checkpoint) -> str:
    """Why a checkpoint can't be used, by its files without reading the weights; ``""`` if they are not on this machine."""
    try:
        checkpoint.check_name()
        if not checkpoint.is_here:
            return ""
        _ = checkpoint.statistics  # also refuses what is no OpenVLA checkpoint
        if checkpoint.is_tiny:
            return ""
        if not (checkpoint.folder / "tokenizer.json").is_file():
            return f"{checkpoint.folder} lacks tokenizer.json. Download the checkpoint again."
        for file in weight_files(checkpoint.folder):
            open_shard(checkpoint.folder / file)
    except ValueError as error:
        return str(error)
    return ""


@_of_checkpoint("checkpoint")
def check_checkpoint(context: DoctorContext, checkpoint: Checkpoint) -> Found:
    """Configuration, tokenizer, statistics, and every shard in full length."""
    if problem := problem_of(checkpoint):
        found, _, remedy = problem.rpartition(". ")
        return "failed", found or problem, remedy if found else ""
    if checkpoint.is_tiny:
        return "ok", "tiny: built in, random weights", ""
    sizes = [(checkpoint.folder / file).stat().st_size for file in weight_files(checkpoint.folder)]
    return "ok", f"{checkpoint.folder}: {len(sizes)} file(s) of weights, {sum(sizes) / 1e9:.2f} GB, complete", ""


@_of_checkpoint("checkpoint and assets", files=False)
def check_fit(context: DoctorContext, checkpoint: Checkpoint) -> Found:
    """A checkpoint must see the assets that it was trained on."""
    kind = context.found_assets.kind
    try:
        checkpoint.check_assets(kind, by_name=context.assets not in (None, "auto"))
    except ValueError as error:
        return "failed", str(error), "Give it the assets it was trained on, or name --assets light."
    return "ok", f"{kind} assets are what the checkpoint was trained on, or were asked for by name", ""


@_of_checkpoint("conventions", files=False)
def check_conventions(context: DoctorContext, checkpoint: Checkpoint) -> Found:
    """What the checkpoint records about its inputs and outputs, and what is assumed."""
    if (assumed := checkpoint.assumptions()) is not None:
        return "note", assumed, "Checkpoints that `sb3-tgrpo sft` or an export of this version writes record them."
    return "ok", ", ".join(f"{name} {value}" for name, value in checkpoint.conventions.record().items()) or "built in", ""


@_of_checkpoint("unnorm key")
def check_unnorm_key(context: DoctorContext, checkpoint: Checkpoint) -> Found:
    """Which action statistics decode the tokens."""
    statistics, suite = checkpoint.statistics, context.task.suite
    if not statistics:
        return "note", "no action statistics: tokens decode into the action space's bounds", ""
    try:
        key = checkpoint.unnorm_key(context.unnorm_key, suite)
    except ValueError as error:
        return "failed", str(error), f"Pass --unnorm-key: {', '.join(sorted(statistics))}."
    widths = np.subtract(statistics[key]["action"]["q99"], statistics[key]["action"]["q01"])
    if not np.isfinite(widths).all() or (widths < 0).any() or not (widths > 0).any():
        return "failed", f"{key}: q01 and q99 are not ranges", "Compute the statistics again (sb3-tgrpo sft)."
    others = f" of {len(statistics)}" if len(statistics) > 1 else ""
    if key.startswith(suite):
        return "ok", f"{key}{others}", ""
    return "note", f"{key}{others}, while the environment is of {suite}", ""


@_of_checkpoint("tokenizer")
def check_tokenizer(context: DoctorContext, checkpoint: Checkpoint) -> Found:
    """A prompt's ids against those recorded upstream."""
    from tokenizers import Tokenizer

    from sb3_tgrpo.openvla.tiny import tiny_tokenizer_json

    text = tiny_tokenizer_json() if checkpoint.is_tiny else (checkpoint.folder / "tokenizer.json").read_text(encoding="utf-8")
    vocabulary = int(checkpoint.config.text_config["vocab_size"])
    ids = prompt_token_ids(Tokenizer.from_str(text), _PROMPT)
    if vocabulary not in GOLDEN_IDS:
        return "not checked", f"no ids are recorded for a vocabulary of {vocabulary}", ""
    expected = GOLDEN_IDS[vocabulary]
    if ids != expected:
        found = f"a prompt's ids are {ids}, recorded were {expected}"
        return "failed", found, "Copy tokenizer.json from the checkpoint's own repository."
    return "ok", f"a prompt's {len(ids)} ids are those recorded", ""


# ---------------------------------------------------------------------- the policy at work


def _observations(context: DoctorContext) -> dict[str, th.Tensor]:
    """Random pictures with the task's instruction."""
    policy = context.policy
    space: Any = policy.observation_space
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_FRAMES, *space[policy.camera].shape), dtype=np.uint8)
    words = np.stack([encode_instruction(get_task(*context.task).instruction)] * _FRAMES)
    return {str(policy.camera): th.from_numpy(images).to(policy.device), "instruction": th.from_numpy(words).to(policy.device)}


@_of_checkpoint("black against white image", plays=True)
def check_sight(context: DoctorContext, checkpoint: Checkpoint) -> Found:
    """A black and a white image must give different logits: upstream's code has skipped the vision tower unnoticed."""
    policy = context.policy
    pair = {key: value[:2] for key, value in _observations(context).items()}
    pictures = pair[str(policy.camera)]
    pictures[0], pictures[1] = 0, 255
    with th.no_grad():
        tokens = policy.choose_tokens({key: value[:1] for key, value in pair.items()}).expand(2, -1)
        logits = _logits(context, pair, tokens)
    difference = float((logits[0] - logits[1]).abs().max())
    found = f"logits differ by up to {difference:.2g}"
    return (
        ("ok", found, "")
        if difference > _BLACK_WHITE
        else ("failed", found, "The policy does not see: check the vision weights and the image statistics.")
    )


def _logits(context: DoctorContext, obs: dict[str, th.Tensor], tokens: th.Tensor) -> th.Tensor:
    """Teacher-forced logits ``(batch, K, bins)``, without caches."""
    policy, model = context.policy, context.policy.model
    pixels = model.pixel_values(model.preprocess(policy._images(obs)))
    ids = prompt_token_ids(model.tokenizer, get_task(*context.task).instruction)
    return model.action_logits(pixels, [ids] * len(pixels), tokens.reshape(len(pixels), -1))


@_of_checkpoint("recorded density", plays=True)
def check_density(context: DoctorContext, checkpoint: Checkpoint) -> Found:
    """Recorded log-probabilities belong to the distribution sampled from, at its temperature."""
    policy = context.policy
    obs = _observations(context)
    with th.no_grad():
        tokens, recorded = policy.sample_actions(obs)
        log_prob = (_logits(context, obs, tokens) / policy.temperature).log_softmax(-1)
    chosen = log_prob.gather(2, (tokens.view(_FRAMES, -1, 1) - policy.model.config.action_vocab_begin).long())[..., 0]
    error = float((chosen - recorded).abs().max())
    allowed = MAX_RATIO_ERROR[policy.model.dtype]
    found = f"log-probabilities off by up to {error:.1e} nats at T={policy.temperature:g} (allowed {allowed:g})"
    return (
        ("ok", found, "")
        if error <= allowed
        else ("failed", found, "Sampling and scoring disagree: ratios would be wrong. Please report this.")
    )


@_of_checkpoint("first ratio", plays=True)
def check_ratio(context: DoctorContext, checkpoint: Checkpoint) -> Found:
    """The ratio of the first minibatch, before any update, is 1."""
    policy = context.policy
    obs = _observations(context)
    with th.no_grad():
        tokens, recorded = policy.sample_actions(obs)
        again, _ = policy.action_log_prob(obs, tokens)
    error = float(((again - recorded).sum(1).exp() - 1).abs().max())
    allowed = MAX_RATIO_ERROR[policy.model.dtype]
    found = f"|ratio - 1| up to {error:.1e} in {str(policy.model.dtype).removeprefix('torch.')} (allowed {allowed:g})"
    return (
        ("ok", found, "")
        if error <= allowed
        else ("failed", found, "The clip would act on rounding: use float32, or a smaller temperature change.")
    )


FILE_CHECKS = (check_checkpoint, check_fit, check_conventions, check_unnorm_key, check_tokenizer)
POLICY_CHECKS = (*FILE_CHECKS, check_sight, check_density, check_ratio)
