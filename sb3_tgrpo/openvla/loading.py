"""Loading and saving OpenVLA checkpoints in the upstream folder layout, with today's transformers and no remote code."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch as th
from torch import nn

from sb3_tgrpo.openvla.actions import check_statistics
from sb3_tgrpo.openvla.config import OpenVLAConfig
from sb3_tgrpo.openvla.images import Normalization
from sb3_tgrpo.openvla.model import OpenVLA

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# Files a checkpoint folder may hold besides weights, kept so that a merged export is complete.
_SIDE_FILES = (
    "dataset_statistics.json", "preprocessor_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "processor_config.json",
)  # fmt: skip


def load_openvla(
    folder_or_hub_id: str | os.PathLike[str],
    dtype: th.dtype | str | None = None,
    device: th.device | str = "auto",
    quantization: Literal["4bit"] | None = None,
) -> OpenVLA:
    """
    Load an OpenVLA checkpoint.

    :param folder_or_hub_id: A folder with the layout of ``openvla/openvla-7b``, a Hugging Face hub id, or ``"tiny"``.
    :param dtype: Precision of the weights; None = float32 on CPU and bfloat16 on CUDA.
    :param device: Where to load to, ``"auto"`` = CUDA if there is one.
    :param quantization: ``"4bit"`` stores the language model's linear layers in 4-bit NormalFloat (bitsandbytes, CUDA only).
    :return: The model in evaluation mode with frozen parameters.
    :raises ValueError: If the folder isn't an OpenVLA checkpoint, is incomplete or damaged, or CUDA is asked for and absent;
        the message says what is wrong.
    :raises ImportError: If ``quantization`` is given without bitsandbytes.
    """
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    if quantization not in (None, "4bit"):
        raise ValueError(f"quantization must be None or '4bit', got {quantization!r}.")
    if str(folder_or_hub_id) == "tiny":
        from sb3_tgrpo.openvla.tiny import build_tiny

        return finish(build_tiny(), dtype, device, quantization)
    folder = find_checkpoint(folder_or_hub_id)
    raw = _read_json(folder / "config.json")
    files = {name: (folder / name).read_bytes() for name in _SIDE_FILES if (folder / name).is_file()}
    config = OpenVLAConfig.from_dict(raw, str(folder / "config.json"))
    check_statistics(config.norm_stats, f"norm_stats in {folder / 'config.json'}")
    model = build_empty(config, _normalization(files, folder))
    if "dataset_statistics.json" in files:
        path = folder / "dataset_statistics.json"
        model.norm_stats = _parsed(files["dataset_statistics.json"], path)
        check_statistics(model.norm_stats, str(path))
    model.files = files
    shards = _shards(folder)
    # 4-bit layers are made from full-precision ones, which must not all be on the GPU at once.
    _load_weights(model, folder, shards, dtype, th.device("cpu") if quantization else device)
    model.identity = _identity(folder, shards)
    return finish(model, dtype, device, quantization)


def finish(model: OpenVLA, dtype: th.dtype, device: th.device, quantization: str | None) -> OpenVLA:
    """Quantise if asked, move, freeze."""
    model.reset_rotary(model.device)  # built on the meta device, and in no checkpoint
    if quantization is not None:
        from sb3_tgrpo.openvla.quantization import quantize_language_model

        quantize_language_model(model, device)
    else:
        model.to(dtype=dtype)
    model.to(device=device)
    return model.eval().requires_grad_(False)


def resolve_device(device: th.device | str) -> th.device:
    """
    :param device: A device or ``"auto"``.
    :raises ValueError: If CUDA is asked for and absent (Stable-Baselines3 itself would silently use the CPU).
    """
    if str(device) == "auto":
        return th.device("cuda" if th.cuda.is_available() else "cpu")
    device = th.device(device)
    if device.type == "cuda" and not th.cuda.is_available():
        raise ValueError(
            f"device={str(device)!r} was asked for, but this PyTorch sees no CUDA device. Use device='cpu', or install a CUDA "
            "build of torch and check `nvidia-smi`."
        )
    return device


def resolve_dtype(dtype: th.dtype | str | None, device: th.device) -> th.dtype:
    """float32 on CPU and bfloat16 on CUDA unless stated; names such as ``"bfloat16"`` are accepted."""
    if dtype is None:
        return th.bfloat16 if device.type == "cuda" else th.float32
    resolved = getattr(th, dtype, None) if isinstance(dtype, str) else dtype
    if resolved not in (th.float32, th.bfloat16, th.float64):
        raise ValueError(f"dtype must be float32, bfloat16 or float64, got {dtype!r}.")
    return resolved


def find_checkpoint(
    folder_or_hub_id: str | os.PathLike[str], patterns: Sequence[str] = ("*.json", "*.safetensors", "tokenizer.model")
) -> Path:
    """
    A local folder as it is; a hub id after downloading it (or from the cache).

    :param patterns: Files to download.
    :raises ValueError: If it is neither, or the download fails.
    """
    folder = Path(folder_or_hub_id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            present = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
            raise ValueError(f"{folder} is not an OpenVLA checkpoint: it has no config.json (it holds {present}).")
        return folder
    name = str(folder_or_hub_id)
    if not is_hub_id(name):
        raise ValueError(f"checkpoint {name!r} is neither a folder nor a hub id (owner/name) nor 'tiny'.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:
        raise ValueError(
            f"Could not get the checkpoint {name!r} from the Hugging Face hub: {error}. "
            "Check the name and the network, or pass a folder that holds it."
        ) from error


def is_hub_id(checkpoint: str) -> bool:
    """Whether it is no folder, but may be something on the Hugging Face hub."""
    return checkpoint.count("/") == 1 and not checkpoint.startswith((".", "/", "~")) and not os.path.isdir(checkpoint)


def read_config(checkpoint: str | os.PathLike[str]) -> OpenVLAConfig:
    """
    A checkpoint's configuration alone, without downloading its weights.

    :param checkpoint: As for :func:`load_openvla`.
    """
    if str(checkpoint) == "tiny":
        from sb3_tgrpo.openvla.tiny import tiny_config

        return OpenVLAConfig.from_dict(tiny_config(), "the tiny configuration")
    folder = find_checkpoint(checkpoint, patterns=["config.json"])
    return OpenVLAConfig.from_dict(_read_json(folder / "config.json"), str(folder / "config.json"))


def build_empty(config: OpenVLAConfig, normalization: Normalization | None = None) -> OpenVLA:
    """The module tree on the meta device: shapes without memory."""
    with th.device("meta"):
        return OpenVLA(config, normalization)


def _read_json(path: Path) -> dict[str, Any]:
    return _parsed(path.read_bytes(), path)


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    """
    :raises ValueError: If the content is no JSON object.
    """
    try:
        parsed = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged (not JSON: {error}). Download the checkpoint again.") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{path} is damaged (it holds no JSON object but {content[:40]!r}). Download the checkpoint again.")
    return parsed


def _normalization(files: Mapping[str, bytes], folder: Path) -> Normalization:
    name = "preprocessor_config.json"
    if name not in files:
        return Normalization()
    try:
        return Normalization.from_preprocessor_config(_parsed(files[name], folder / name))
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / name} is damaged (tvf_normalize_params: {error!r}). Download the checkpoint again."
        ) from error


def _shards(folder: Path) -> dict[str, str]:
    """File of every tensor. Shards may end inside a decoder layer, so nothing is assumed about their borders."""
    from safetensors import safe_open

    if (folder / _INDEX).is_file():
        weight_map = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(
                f"{folder / _INDEX} is damaged (it has no weight_map from tensors to files). Download the checkpoint again."
            )
        absent = sorted(name for name in set(weight_map.values()) if not (folder / name).is_file())
        if absent:
            raise ValueError(f"{folder} lacks {', '.join(absent)}, named in {_INDEX}. Download the checkpoint again.")
        return weight_map
    if not (folder / _SINGLE).is_file():
        raise ValueError(f"{folder} is not a complete OpenVLA checkpoint: it has neither {_INDEX} nor {_SINGLE}.")
    with _open_shard(folder / _SINGLE, safe_open) as shard:
        return dict.fromkeys(shard.keys(), _SINGLE)


def _open_shard(path: Path, safe_open: Any) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except Exception as error:  # safetensors raises its own type, an OSError or a RuntimeError, by kind of damage
        raise ValueError(f"{path} is truncated or damaged ({error}). Download the checkpoint again.") from error


def _load_weights(model: OpenVLA, folder: Path, shards: dict[str, str], dtype: th.dtype, device: th.device) -> None:
    from safetensors import safe_open

    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(set(expected) - set(shards))
    unexpected = sorted(set(shards) - set(expected))
    if missing or unexpected:
        raise ValueError(
            f"{folder} does not hold this OpenVLA: {len(missing)} tensors missing{some(missing)}, "
            f"{len(unexpected)} unexpected{some(unexpected)}."
        )
    for file in sorted(set(shards.values())):
        tensors: dict[str, th.Tensor] = {}
        with _open_shard(folder / file, safe_open) as shard:
            held = set(shard.keys())
            for name in (name for name, where in shards.items() if where == file):
                if name not in held:
                    raise ValueError(f"{folder / file} lacks {name}, which {_INDEX} says it holds. Download it again.")
                tensor = shard.get_tensor(name)
                if tuple(tensor.shape) != expected[name]:
                    raise ValueError(
                        f"{folder}: {name} has shape {tuple(tensor.shape)}, the configuration says {expected[name]}."
                    )
                tensors[name] = tensor.to(device=device, dtype=dtype)
        model.load_state_dict(tensors, strict=False, assign=True)


def some(names: list[str], limit: int = 4) -> str:
    """The first names in brackets after a space, for messages."""
    return f" ({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})" if names else ""


def checkpoint_identity(checkpoint: str | os.PathLike[str]) -> str:
    """
    A fingerprint of a checkpoint's content, without loading it.

    :param checkpoint: As for :func:`load_openvla`; a hub id is downloaded if it is not in the cache.
    """
    if str(checkpoint) == "tiny":
        return "tiny"
    folder = find_checkpoint(checkpoint)
    return _identity(folder, _shards(folder))


def _identity(folder: Path, shards: Mapping[str, str]) -> str:
    """
    A fingerprint of the checkpoint: configuration, statistics, and each shard's size, header and ends. Reading all
    15 GB would take a minute at every start; a fine-tune of the same shapes differs in the sampled bytes.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "dataset_statistics.json"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for name in sorted(set(shards.values())):
        size = (folder / name).stat().st_size
        digest.update(f"{name}:{size}".encode())
        with open(folder / name, "rb") as file:
            digest.update(file.read(1 << 17))
            file.seek(max(size - (1 << 16), 0))
            digest.update(file.read())
    return digest.hexdigest()


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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = model.state_dict() if state_dict is None else dict(state_dict)
    reference = build_empty(model.config).state_dict()
    if set(weights) != set(reference):
        extra = sorted(set(weights) ^ set(reference))
        raise ValueError(f"The weights are not those of a plain OpenVLA{some(extra)}: merge adapters before saving.")
    stats = dict(model.norm_stats if norm_stats is None else norm_stats)
    raw = {**model.config.raw, **(config or {}), "norm_stats": stats}
    raw["torch_dtype"] = str(dtype or model.dtype).removeprefix("torch.")
    # Without these nothing is loaded: new weights never meet the statistics, or the index, of what was here before.
    for name in ("config.json", _INDEX, _SINGLE):
        (folder / name).unlink(missing_ok=True)
    weight_map = _write_shards(weights, reference, folder, dtype or model.dtype, max_shard_bytes)
    for name, content in model.files.items():
        _write(folder / name, content)
    _write_json(folder / "dataset_statistics.json", stats)
    if "preprocessor_config.json" not in model.files:
        _write_json(folder / "preprocessor_config.json", preprocessor_config(model))
    total = sum(weights[name].numel() for name in reference) * (dtype or model.dtype).itemsize
    _write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    _write_json(folder / "config.json", raw)
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


def _plan_shards(sizes: Mapping[str, int], max_bytes: int) -> Iterator[list[str]]:
    """Fill files in state-dict order, as transformers does."""
    current: list[str] = []
    used = 0
    for name, size in sizes.items():
        if current and used + size > max_bytes:
            yield current
            current, used = [], 0
        current.append(name)
        used += size
    if current:
        yield current


def _write_shards(
    weights: Mapping[str, th.Tensor], order: Mapping[str, th.Tensor], folder: Path, dtype: th.dtype, max_bytes: int
) -> dict[str, str]:
    from safetensors.torch import save_file

    plan = list(_plan_shards({name: order[name].numel() * dtype.itemsize for name in order}, max_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(plan, start=1):
        file = f"model-{number:05d}-of-{len(plan):05d}.safetensors"
        tensors = {name: weights[name].detach().to("cpu", dtype).contiguous() for name in names}
        temporary = folder / f".{file}.part"
        save_file(tensors, str(temporary), metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors writes for the owner alone
        os.replace(temporary, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    return weight_map


def _write_json(path: Path, content: Any) -> None:
    _write(path, (json.dumps(content, indent=2) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, on any device (4-bit weights count as stored)."""
    return sum(parameter.numel() for parameter in module.parameters())
