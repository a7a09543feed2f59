"""Checks of a checkpoint and of the policy made from it, for :mod:`sb3_tgrpo.doctor.checks`."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th

from sb3_tgrpo.doctor.checks import Check, Finding, Plan, Subject
from sb3_tgrpo.envs.libero.tasks import get_task
from sb3_tgrpo.envs.registration import STEP_CAPS
from sb3_tgrpo.envs.spaces import encode_instruction
from sb3_tgrpo.openvla.actions import resolve_unnorm_key
from sb3_tgrpo.openvla.prompt import decode_instruction, prompt_token_ids

if TYPE_CHECKING:
    from sb3_tgrpo.openvla.config import OpenVLAConfig
    from sb3_tgrpo.openvla.model import OpenVLA

INDEX = "model.safetensors.index.json"
MAX_RATIO_ERROR = {th.float32: 1e-4, th.float64: 1e-4, th.bfloat16: 0.15}
_FRAMES = 4
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

_MODEL_SKIPPED = "no checkpoint was named"
_NO_CHECKPOINT = "pass --checkpoint to check one"


def local_folder(checkpoint: str) -> Path | None:
    """
    Where a checkpoint lies on this machine; nothing is downloaded.

    :param checkpoint: Folder or hub id.
    :return: None if a hub id has not been downloaded.
    """
    from sb3_tgrpo.openvla.loading import find_checkpoint

    folder = Path(checkpoint).expanduser()
    if folder.is_dir() or checkpoint.count("/") != 1 or checkpoint.startswith((".", "/", "~")):
        return find_checkpoint(folder if folder.is_dir() else checkpoint)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(checkpoint, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def check_checkpoint(subject: Subject) -> Finding:
    """Configuration, tokenizer, statistics, and every shard in full length."""
    name = "checkpoint"
    if subject.checkpoint is None:
        return Finding(name, "not checked", _MODEL_SKIPPED, _NO_CHECKPOINT)
    if subject.checkpoint == "tiny":
        return Finding(name, "ok", "tiny: built in, random weights")
    folder = local_folder(subject.checkpoint)
    remedy = "Download the checkpoint again."
    if folder is None:
        remedy = "It is downloaded (15 GB at full size) when it is first used."
        return Finding(name, "not checked", f"{subject.checkpoint} is not on this machine yet", remedy)
    missing = [file for file in ("config.json", "tokenizer.json") if not (folder / file).is_file()]
    if missing:
        return Finding(name, "failed", f"{folder} lacks {', '.join(missing)}", remedy)
    shards, problems = _shards(folder)
    problems += [problem for shard in shards if (problem := shard_problem(folder / shard))]
    if problems:
        return Finding(name, "failed", f"{folder}: {'; '.join(problems[:4])}", remedy)
    size = sum((folder / shard).stat().st_size for shard in shards)
    return Finding(name, "ok", f"{folder}: {len(shards)} file(s) of weights, {size / 1e9:.2f} GB, complete")


def _shards(folder: Path) -> tuple[list[str], list[str]]:
    """Files of weights, and what is wrong with their list."""
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(weight_map.values())), []
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"], []
    return [], [f"neither {INDEX} nor model.safetensors"]


def shard_problem(path: Path) -> str:
    """
    What is wrong with a safetensors file by its header, without reading the weights.

    :return: ``""`` if nothing is.
    """
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            return f"{path.name} is truncated in its header"
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return f"{path.name} has a damaged header"
    end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
    if size != 8 + length + end:
        return f"{path.name} has {size} bytes, its header says {8 + length + end}"
    return ""


def check_fit(subject: Subject) -> Finding:
    """A checkpoint must see the assets that it was trained on."""
    from sb3_tgrpo.openvla.checks import check_assets

    name = "checkpoint and assets"
    if subject.checkpoint is None:
        return Finding(name, "not checked", _MODEL_SKIPPED, _NO_CHECKPOINT)
    kind = subject.found_assets.kind
    try:
        check_assets(subject.checkpoint, kind, by_name=subject.assets != "auto")
    except ValueError as error:
        return Finding(name, "failed", str(error), "Give it the assets it was trained on, or name --assets light.")
    return Finding(name, "ok", f"{kind} assets are what the checkpoint was trained on, or were asked for by name")


def check_unnorm_key(subject: Subject) -> Finding:
    """Which action statistics decode the tokens."""
    name = "unnorm key"
    if subject.checkpoint is None:
        return Finding(name, "not checked", _MODEL_SKIPPED, _NO_CHECKPOINT)
    statistics = _statistics(subject.checkpoint)
    if statistics is None:
        return Finding(name, "not checked", f"{subject.checkpoint} is not on this machine yet")
    if not statistics:
        return Finding(name, "note", "no action statistics: tokens decode into the action space's bounds")
    try:
        key = resolve_unnorm_key(list(statistics), subject.unnorm_key, subject.task[0])
    except ValueError as error:
        return Finding(name, "failed", str(error), f"Pass --unnorm-key: {', '.join(sorted(statistics))}.")
    widths = np.subtract(statistics[key]["action"]["q99"], statistics[key]["action"]["q01"])
    if not np.isfinite(widths).all() or (widths < 0).any() or not (widths > 0).any():
        return Finding(name, "failed", f"{key}: q01 and q99 are not ranges", "Compute the statistics again (sb3-tgrpo sft).")
    others = f" of {len(statistics)}" if len(statistics) > 1 else ""
    if key.startswith(subject.task[0]):
        return Finding(name, "ok", f"{key}{others}")
    return Finding(name, "note", f"{key}{others}, while the environment is of {subject.task[0]}")


def _statistics(checkpoint: str) -> dict[str, Any] | None:
    if checkpoint == "tiny":
        return {}
    folder = local_folder(checkpoint)
    if folder is None:
        return None
    if (folder / "dataset_statistics.json").is_file():
        return json.loads((folder / "dataset_statistics.json").read_text(encoding="utf-8"))
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("norm_stats", {})


def check_tokenizer(subject: Subject) -> Finding:
    """A prompt's ids against those recorded upstream."""
    from tokenizers import Tokenizer

    from sb3_tgrpo.openvla.loading import read_config
    from sb3_tgrpo.openvla.tiny import tiny_tokenizer_json

    name = "tokenizer"
    if subject.checkpoint is None:
        return Finding(name, "not checked", _MODEL_SKIPPED, _NO_CHECKPOINT)
    if subject.checkpoint == "tiny":
        tokenizer = Tokenizer.from_str(tiny_tokenizer_json())
    else:
        folder = local_folder(subject.checkpoint)
        if folder is None:
            return Finding(name, "not checked", f"{subject.checkpoint} is not on this machine yet")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = int(read_config(subject.checkpoint).text_config["vocab_size"])
    ids = prompt_token_ids(tokenizer, _PROMPT)
    if vocabulary not in GOLDEN_IDS:
        return Finding(name, "not checked", f"no ids are recorded for a vocabulary of {vocabulary}")
    expected = GOLDEN_IDS[vocabulary]
    if ids != expected:
        found = f"a prompt's ids are {ids}, recorded were {expected}"
        return Finding(name, "failed", found, "Copy tokenizer.json from the checkpoint's own repository.")
    return Finding(name, "ok", f"a prompt's {len(ids)} ids are those recorded")


# ---------------------------------------------------------------------- the policy at work


def _unfit(subject: Subject, name: str) -> Finding | None:
    """Why the model is not loaded for a check, if it is not."""
    if subject.checkpoint is None:
        return Finding(name, "not checked", _MODEL_SKIPPED, _NO_CHECKPOINT)
    if subject.checkpoint != "tiny":
        if local_folder(subject.checkpoint) is None:
            return Finding(name, "not checked", f"{subject.checkpoint} is not on this machine yet")
        needed = memory_parts(_config(subject.checkpoint), Plan(lora=None), subject.device, "")["weights"]
        free, where = free_memory(subject.device)
        if needed > free:
            found = f"loading takes {needed / 1e9:.1f} GB, {where} has {free / 1e9:.1f} GB free"
            return Finding(name, "not checked", found, "Check it on the machine that it will run on.")
    return None


def _observations(subject: Subject) -> dict[str, th.Tensor]:
    """Random pictures with the task's instruction."""
    policy = subject.policy
    space: Any = policy.observation_space
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_FRAMES, *space["image"].shape), dtype=np.uint8)
    words = np.stack([encode_instruction(get_task(*subject.task).instruction)] * _FRAMES)
    return {"image": th.from_numpy(images).to(policy.device), "instruction": th.from_numpy(words).to(policy.device)}


def check_sight(subject: Subject) -> Finding:
    """A black and a white image must give different logits: upstream's code has skipped the vision tower unnoticed."""
    name = "black against white image"
    if (skipped := _unfit(subject, name)) is not None:
        return skipped
    policy = subject.policy
    obs = _observations(subject)
    obs["image"][0], obs["image"][1] = 0, 255
    pair = {key: value[:2] for key, value in obs.items()}
    with th.no_grad():
        tokens = policy.choose_tokens({key: value[:1] for key, value in pair.items()}).expand(2, -1)
        logits = _logits(subject, pair, tokens)
    difference = float((logits[0] - logits[1]).abs().max())
    found = f"logits differ by up to {difference:.2g}"
    if difference > _BLACK_WHITE:
        return Finding(name, "ok", found)
    return Finding(name, "failed", found, "The policy does not see: check the vision weights and the image statistics.")


def _logits(subject: Subject, obs: dict[str, th.Tensor], tokens: th.Tensor) -> th.Tensor:
    """Teacher-forced logits ``(batch, K, bins)``, without caches."""
    policy, model = subject.policy, subject.policy.model
    words = [decode_instruction(row.cpu().numpy().tobytes()) for row in obs["instruction"]]
    pixels = model.pixel_values(model.preprocess(policy._images(obs)))
    ids = [prompt_token_ids(model.tokenizer, sentence) for sentence in words]
    return model.action_logits(pixels, ids, tokens.reshape(len(pixels), -1))


def check_density(subject: Subject) -> Finding:
    """Recorded log-probabilities are those of the distribution sampled from, at its temperature."""
    name = "recorded density"
    if (skipped := _unfit(subject, name)) is not None:
        return skipped
    policy = subject.policy
    obs = _observations(subject)
    with th.no_grad():
        tokens, recorded = policy.sample_actions(obs)
        log_prob = (_logits(subject, obs, tokens) / policy.temperature).log_softmax(-1)
    chosen = log_prob.gather(2, (tokens.view(_FRAMES, -1, 1) - policy.model.config.action_vocab_begin).long())[..., 0]
    error = float((chosen - recorded).abs().max())
    allowed = MAX_RATIO_ERROR[policy.model.dtype]
    found = f"log-probabilities off by up to {error:.1e} nats at T={policy.temperature:g} (allowed {allowed:g})"
    if error <= allowed:
        return Finding(name, "ok", found)
    return Finding(name, "failed", found, "Sampling and scoring disagree: ratios would be wrong. Please report this.")


def check_ratio(subject: Subject) -> Finding:
    """The ratio of the first minibatch, before any update, is 1."""
    name = "first ratio"
    if (skipped := _unfit(subject, name)) is not None:
        return skipped
    policy = subject.policy
    obs = _observations(subject)
    with th.no_grad():
        tokens, recorded = policy.sample_actions(obs)
        again, _ = policy.action_log_prob(obs, tokens)
    error = float(((again - recorded).sum(1).exp() - 1).abs().max())
    allowed = MAX_RATIO_ERROR[policy.model.dtype]
    found = f"|ratio - 1| up to {error:.1e} in {str(policy.model.dtype).removeprefix('torch.')} (allowed {allowed:g})"
    if error <= allowed:
        return Finding(name, "ok", found)
    return Finding(name, "failed", found, "The clip would act on rounding: use float32, or a smaller temperature change.")


# ---------------------------------------------------------------------- memory


def _config(checkpoint: str) -> "OpenVLAConfig":
    from sb3_tgrpo.openvla.loading import read_config

    return read_config(checkpoint)


def free_memory(device: str) -> tuple[float, str]:
    """Free bytes where a policy would go, and its name."""
    if device != "cpu" and th.cuda.is_available():
        return float(th.cuda.mem_get_info()[0]), "the GPU"
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(line for line in file if line.startswith("MemAvailable"))
    return 1024.0 * int(available.split()[1]), "this machine"


def memory_parts(config: "OpenVLAConfig", plan: Plan, device: str, suite: str) -> dict[str, float]:
    """
    Bytes that a training run takes, from shapes; what allocators and contexts add is left out.

    :param config: Of the checkpoint.
    :param plan: The run.
    :param device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
    :param suite: LIBERO suite, for the length of its episodes.
    """
    from sb3_tgrpo.openvla.loading import build_empty, resolve_device, resolve_dtype

    width = resolve_dtype(plan.dtype, resolve_device(device)).itemsize
    model = build_empty(config)
    text = config.text_config
    hidden, layers, inner = text["hidden_size"], text["num_hidden_layers"], text["intermediate_size"]
    length = config.n_visual_tokens + 36 + 6  # a long instruction, and the tokens before the last
    n_parameters = sum(p.numel() for p in model.parameters())
    weights = float(n_parameters * width)
    if plan.quantization == "4bit":
        linear = sum(m.weight.numel() for m in model.language_model.model.modules() if isinstance(m, th.nn.Linear))
        weights -= linear * (width - 0.52)  # four bits, and a scale of half a byte per 64 weights, itself quantised
    sees = trains_vision(model, plan.lora)
    members = plan.group_size * plan.n_groups
    steps = plan.n_steps if plan.n_steps is not None else STEP_CAPS.get(suite, 300)
    batch = plan.batch_size if plan.batch_size is not None else plan.group_size * steps
    per_layer = float(batch * length * (10 * hidden + 6 * inner) * width)
    kept = 1 if plan.gradient_checkpointing else layers
    if plan.lora is None:
        state = 3.0 * n_parameters * width  # gradient and AdamW's two moments, like the weights that are trained in place
    else:
        state = 16.0 * adapter_size(model, plan.lora)  # float32 weight, gradient and two moments
    # With a trained vision side, preprocessed pictures are cached instead of their embeddings.
    frame = 3 * config.image_size**2 if sees else config.n_visual_tokens * hidden * width
    parts = {
        "weights": weights,
        "training state": state,
        "reference copy": 0.0 if plan.lora is not None else weights,
        "cached images" if sees else "image embeddings": float(min(members * steps * frame, 2 * 2**30)),
        "key-value cache": float(members * length * layers * 2 * hidden * width),
        "activations": per_layer * kept + (batch * length * hidden * layers * width if plan.gradient_checkpointing else 0.0),
        "vision activations": float(batch * vision_activations(model) * width) if sees else 0.0,
    }
    return parts


def vision_activations(model: "OpenVLA") -> int:
    """
    Numbers per picture that towers and projector keep for the backward pass when they are trained; gradient checkpointing
    is of the language model only.
    """
    total = 0
    for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
        length = tower.pos_embed.shape[1] + tower.n_prefix
        blocks: list[Any] = list(tower.blocks[:-1])  # features leave before the last one
        for block in blocks:
            # Inputs and outputs of norms and linear layers, queries, keys and values, layer scale; GELU's input and output.
            total += length * (10 * block.attn.proj.in_features + 2 * block.mlp.fc1.out_features)
    projector = model.projector
    widths = projector.fc1.in_features + 2 * projector.fc1.out_features + 2 * projector.fc2.out_features
    return total + model.config.n_visual_tokens * widths


def trains_vision(model: th.nn.Module, lora: str | None) -> bool:
    """Whether towers or projector are trained."""
    return lora is None or any(not name.startswith("language_model") for name, _ in _adapted(model, lora))


def adapter_size(model: th.nn.Module, lora: str) -> int:
    """Parameters of an adapter, without attaching it, which takes PEFT seconds at full size."""
    from sb3_tgrpo.openvla.lora import lora_config

    rank = lora_config(lora).r
    return sum(rank * (module.weight[0].numel() + module.weight.shape[0]) for _, module in _adapted(model, lora))


def _adapted(model: th.nn.Module, lora: str) -> Iterator[tuple[str, th.nn.Linear | th.nn.Conv2d]]:
    """Modules that get an adapter, by name."""
    from peft.tuners.tuners_utils import check_target_module_exists

    from sb3_tgrpo.openvla.lora import lora_config

    config = lora_config(lora)
    for name, module in model.named_modules():
        if isinstance(module, th.nn.Linear | th.nn.Conv2d) and check_target_module_exists(config, name):
            yield name, module


def check_memory(subject: Subject) -> Finding:
    """Free memory against an estimate for the planned run."""
    name = "memory"
    free, where = free_memory(subject.device)
    if subject.plan is None or subject.checkpoint is None:
        return Finding(name, "not checked", f"{where} has {free / 1e9:.1f} GB free", "--plan and --checkpoint estimate a run")
    if subject.checkpoint != "tiny" and local_folder(subject.checkpoint) is None:
        from sb3_tgrpo.openvla.checks import UPSTREAM_CHECKPOINTS

        if subject.checkpoint not in UPSTREAM_CHECKPOINTS.values():
            return Finding(name, "not checked", f"{subject.checkpoint} is not on this machine yet: its sizes are not known")
        config = upstream_config()
    else:
        config = _config(subject.checkpoint)
    parts = memory_parts(config, subject.plan, subject.device, subject.task[0])
    total = sum(parts.values())
    listed = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in parts.items() if size >= 5e7)
    found = f"about {total / 1e9:.1f} GB ({listed}); {where} has {free / 1e9:.1f} GB free"
    if total <= free:
        return Finding(name, "ok", found)
    remedy = "Smaller micro_batch_size, gradient_checkpointing=True, dtype='bfloat16', quantization='4bit', lora='language'."
    return Finding(name, "failed", found, remedy)


def upstream_config() -> "OpenVLAConfig":
    """OpenVLA-7B's sizes, which need no file."""
    from sb3_tgrpo.openvla.config import OpenVLAConfig

    towers = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]
    text = {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064}
    raw = {"n_action_bins": 256, "pad_to_multiple_of": 64, "text_config": text, "timm_model_ids": towers}
    return OpenVLAConfig.from_dict(raw, "OpenVLA-7B")


POLICY_CHECKS: tuple[tuple[str, Check], ...] = (
    ("checkpoint", check_checkpoint),
    ("checkpoint and assets", check_fit),
    ("unnorm key", check_unnorm_key),
    ("tokenizer", check_tokenizer),
    ("black against white image", check_sight),
    ("recorded density", check_density),
    ("first ratio", check_ratio),
    ("memory", check_memory),
)
