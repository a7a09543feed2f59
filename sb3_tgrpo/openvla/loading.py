"""Loading and saving OpenVLA checkpoints in the upstream folder layout, with today's transformers and no remote code."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as th
from torch import nn

from sb3_tgrpo.files import atomic_path, atomic_write
from sb3_tgrpo.openvla.config import OpenVLAConfig
from sb3_tgrpo.openvla.folder import INDEX, SINGLE, open_shard, read_json, weight_files, weight_map
from sb3_tgrpo.openvla.images import Normalization
from sb3_tgrpo.openvla.model import OpenVLA

# Files a checkpoint folder may hold besides weights, kept so that a merged export is complete.
_SIDE_FILES = (
    "dataset_statistics.json", "preprocessor_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "processor_config.json",
)  # fmt: skip


def load_folder(folder: Path, config: OpenVLAConfig, dtype: th.dtype, device: th.device | str) -> OpenVLA:
    """The model of a checkpoint folder, still to be placed by :func:`place_model`."""
    model = build_empty(config, _normalization(folder / "preprocessor_config.json"))
    model.files = {name: (folder / name).read_bytes() for name in _SIDE_FILES if (folder / name).is_file()}
    _load_weights(model, folder, dtype, th.device(device))
    return model


def place_model(model: OpenVLA, dtype: th.dtype, device: th.device, quantization: str | None) -> OpenVLA:
    """Quantise a model if asked, move and freeze it, in place."""
    model.reset_rotary(model.device)  # built on the meta device, and in no checkpoint
    if quantization is not None:
        quantize_language_model(model, device)
    else:
        model.to(dtype=dtype)
    return model.to(device=device).eval().requires_grad_(False)


def quantize_language_model(model: OpenVLA, device: th.device) -> None:
    """
    Store the linear layers of Llama's blocks as 4-bit NormalFloat (double quantisation) and compute in bfloat16.
    Embeddings, ``lm_head``, norms, vision towers and projector keep their precision. Experimental: it has not been run on a
    GPU. The weights are quantised in place while moving from the CPU to the CUDA device, one layer at a time.
    """
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise ImportError("quantization='4bit' needs bitsandbytes: pip install bitsandbytes") from error
    if device.type != "cuda":
        raise ValueError(f"quantization='4bit' needs device='cuda', got {str(device)!r}.")
    for layer in model.language_model.model.layers:
        for name, linear in [(n, m) for n, m in layer.named_modules() if isinstance(m, nn.Linear)]:
            quantised = bnb.nn.Linear4bit(
                linear.in_features, linear.out_features, bias=False, compute_dtype=th.bfloat16, quant_type="nf4",
                compress_statistics=True,
            )  # fmt: skip
            quantised.weight = bnb.nn.Params4bit(
                linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            parent, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(parent), leaf, quantised.to(device))
    model.is_loaded_in_4bit = True


def resolve_device(device: th.device | str) -> th.device:
    """A device that torch has here, else a ValueError; Stable-Baselines3 would silently use the CPU for an absent CUDA."""
    if str(device) == "auto":
        return th.device("cuda" if th.cuda.is_available() else "cpu")
    name = str(device)
    if name.startswith("cuda") and not th.cuda.is_available():
        raise ValueError(
            f"device={name!r} was asked for, but this PyTorch sees no CUDA device. Use device='cpu', or install a CUDA "
            "build of torch and check `nvidia-smi`."
        )
    try:
        th.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"device={name!r}: {reason}. Choose auto, cpu, or a device that torch finds here.") from None
    return th.device(name)


def resolve_dtype(dtype: th.dtype | str | None, device: th.device) -> th.dtype:
    """float32 on CPU and bfloat16 on CUDA unless stated; names such as ``"bfloat16"`` are accepted."""
    if dtype is None:
        return th.bfloat16 if device.type == "cuda" else th.float32
    resolved = getattr(th, dtype, None) if isinstance(dtype, str) else dtype
    if resolved not in (th.float32, th.bfloat16, th.float64):
        raise ValueError(f"dtype must be float32, bfloat16 or float64, got {dtype!r}.")
    return resolved


def build_empty(config: OpenVLAConfig, normalization: Normalization | None = None) -> OpenVLA:
    """The module tree on the meta device: shapes without memory."""
    with th.device("meta"):
        return OpenVLA(config, normalization)


def _normalization(path: Path) -> Normalization:
    try:
        return Normalization.from_preprocessor_config(read_json(path) if path.is_file() else {})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged (tvf_normalize_params: {error!r}). Download the checkpoint again.") from error


def _load_weights(model: OpenVLA, folder: Path, dtype: th.dtype, device: th.device) -> None:
    """Shards may end inside a decoder layer, so nothing is assumed about their borders."""
    files, shards = weight_files(folder), weight_map(folder)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing, unexpected = sorted(set(expected) - set(shards)), sorted(set(shards) - set(expected))
    if missing or unexpected:
        raise ValueError(
            f"{folder} does not hold this OpenVLA: {len(missing)} tensors missing{some(missing)}, "
            f"{len(unexpected)} unexpected{some(unexpected)}."
        )
    for file in files:
        tensors: dict[str, th.Tensor] = {}
        with open_shard(folder / file, "pt") as shard:
            held = set(shard.keys())
            for name in (name for name, where in shards.items() if where == file):
                if name not in held:
                    raise ValueError(f"{folder / file} lacks {name}, which {INDEX} lists for it. Download it again.")
                tensor = shard.get_tensor(name)
                if tuple(tensor.shape) != expected[name]:
                    raise ValueError(
                        f"{folder}: {name} has shape {tuple(tensor.shape)}, the configuration gives {expected[name]}."
                    )
                tensors[name] = tensor.to(device=device, dtype=dtype)
        model.load_state_dict(tensors, strict=False, assign=True)


def some(names: list[str], limit: int = 4) -> str:
    """The first names in brackets after a space, for messages."""
    return f" ({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})" if names else ""


# ---------------------------------------------------------------------- saving


def save_openvla(
    model: OpenVLA,
    folder: str | os.PathLike[str],
    *,
    state_dict: Mapping[str, th.Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    norm_stats: Mapping[str, Any] | None = None,
    dtype: th.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """
    Write a checkpoint in the upstream layout: ``config.json``, sharded safetensors with an index,
    ``dataset_statistics.json``, tokenizer and preprocessor files. Each file appears whole or not at all, ``config.json``
    last: a folder whose writing was interrupted has none and is refused, also where it held a checkpoint before.

    :param model: The model (without adapters: merge them first).
    :param folder: Created if needed.
    :param state_dict: Weights to write instead of the model's own.
    :param config: Entries to change in ``config.json``.
    :param norm_stats: Action statistics to write; None = the model's.
    :param dtype: Precision on disk; None = the model's (upstream: bfloat16).
    :param max_shard_bytes: A file holds at most this many bytes of tensors (a larger tensor gets its own).
    :return: The folder.
    :raises ValueError: If the weights are not exactly a checkpoint's (for instance adapters are still attached).
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict() if state_dict is None else dict(state_dict)
    reference = build_empty(model.config).state_dict()
    if extra := sorted(set(weights) ^ set(reference)):
        raise ValueError(f"The weights do not belong to a plain OpenVLA{some(extra)}: merge adapters before saving.")
    stats = dict(model.norm_stats if norm_stats is None else norm_stats)
    dtype = dtype or model.dtype
    raw = {**model.config.raw, **(config or {}), "norm_stats": stats, "torch_dtype": str(dtype).removeprefix("torch.")}
    # Without these nothing is loaded: new weights never meet the statistics, or the index, of what was here before.
    for name in ("config.json", INDEX, SINGLE):
        (folder / name).unlink(missing_ok=True)
    files, total = _shard_plan(reference, dtype, max_shard_bytes)
    for file, names in files.items():
        tensors = {name: weights[name].detach().to("cpu", dtype).contiguous() for name in names}
        with atomic_path(folder / file) as unfinished:
            save_file(tensors, str(unfinished), metadata={"format": "pt"})
    for name, content in model.files.items():
        atomic_write(folder / name, content)
    atomic_write(folder / "dataset_statistics.json", _json(stats))
    if "preprocessor_config.json" not in model.files:
        atomic_write(folder / "preprocessor_config.json", _json(preprocessor_config(model)))
    places = sorted((name, file) for file, names in files.items() for name in names)
    atomic_write(folder / INDEX, _json({"metadata": {"total_size": total}, "weight_map": dict(places)}))
    atomic_write(folder / "config.json", _json(raw))
    return folder


def preprocessor_config(model: OpenVLA) -> dict[str, Any]:
    """``preprocessor_config.json`` for a model that came without one, with the keys upstream's processor writes."""
    size = model.config.image_size
    towers = range(len(model.normalization.means))
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, size, size] for _ in towers],
        "interpolations": ["bicubic" for _ in towers],
        "means": [list(mean) for mean in model.normalization.means],
        "stds": [list(std) for std in model.normalization.stds],
        "tvf_crop_params": [{"output_size": [size, size]} for _ in towers],
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
        "tvf_normalize_params": [
            {"inplace": False, "mean": list(mean), "std": list(std)}
            for mean, std in zip(model.normalization.means, model.normalization.stds, strict=True)
        ],
        "tvf_resize_params": [{"antialias": True, "interpolation": 3, "max_size": None, "size": [size, size]} for _ in towers],
        "use_fused_vision_backbone": True,
    }


def _shard_plan(model: Mapping[str, th.Tensor], dtype: th.dtype, max_bytes: int) -> tuple[dict[str, list[str]], int]:
    """Names of the tensors in each file, in state-dict order as transformers has them, and the bytes of all."""
    from huggingface_hub import split_torch_state_dict_into_shards

    tensors = {name: tensor.to(dtype) for name, tensor in model.items()}
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=max_bytes)
    parts = plan.filename_to_tensors.values()
    files = {f"model-{number:05d}-of-{len(parts):05d}.safetensors": names for number, names in enumerate(parts, start=1)}
    return files, plan.metadata["total_size"]


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"
