"""Adapters on OpenVLA through PEFT: which modules, starting from a given adapter, and getting the result out again."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch as th

from sb3_tgrpo.openvla.loading import find_checkpoint, save_openvla
from sb3_tgrpo.openvla.model import DEFAULT_ACTION_DIM, OpenVLA

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

# What "all-linear" meant in the PEFT release the upstream checkpoints were made with: 436 linear layers, both patch
# embeddings and lm_head. Today's "all-linear" leaves the last three out, so the names are spelled out.
UPSTREAM_MODULES = (
    "qkv", "proj", "fc1", "fc2", "fc3", "q", "kv", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
    "down_proj", "lm_head",
)  # fmt: skip

LANGUAGE_MODULES = r"language_model\.(.*\.(q|k|v|o|gate|up|down)_proj|lm_head)"


def lora_config(lora: str | Mapping[str, Any]) -> "LoraConfig":
    """
    PEFT's configuration.

    :param lora: ``"language"`` (rank 32, the language model only, so that vision embeddings can be cached),
        ``"upstream"`` (rank 32, upstream's 439 modules), or keyword arguments of ``peft.LoraConfig``
        (missing ones as in ``"language"``).
    :raises ValueError: For an unknown name, or a setting that would break recorded log-probabilities.
    """
    from peft import LoraConfig

    settings: dict[str, Any] = {
        "r": 32, "lora_alpha": 16, "lora_dropout": 0.0, "init_lora_weights": "gaussian", "target_modules": LANGUAGE_MODULES,
    }  # fmt: skip
    if lora == "upstream":
        settings["target_modules"] = list(UPSTREAM_MODULES)
    elif isinstance(lora, Mapping):
        settings.update(lora)
    elif lora != "language":
        raise ValueError(f"lora must be 'language', 'upstream', a dict of peft.LoraConfig arguments or None, got {lora!r}.")
    if settings["lora_dropout"]:
        raise ValueError(
            f"lora_dropout must be 0, got {settings['lora_dropout']}: with dropout the policy that is scored isn't the one "
            "that was sampled from, and the first ratio is no longer 1."
        )
    for name in ("use_dora", "modules_to_save", "lora_bias"):
        if settings.get(name):
            raise ValueError(
                f"lora={{'{name}': ...}} is not supported: only plain low-rank adapters can be scored on 256 rows."
            )
    if settings.get("bias", "none") != "none":
        raise ValueError(
            "lora={'bias': ...} must be 'none': trained biases would not vanish with the adapter (the reference)."
        )
    return LoraConfig(**settings)


def attach_lora(model: OpenVLA, lora: str | Mapping[str, Any]) -> "PeftModel":
    """
    Put fresh adapters on a model, in place; only they are trainable afterwards.

    :param model: The model, without adapters.
    :param lora: See :func:`lora_config`.
    :return: PEFT's wrapper; ``wrapper.get_base_model()`` is ``model``.
    """
    from peft import get_peft_model

    low_precision = model.dtype not in (th.float32, th.float64)
    # `low_cpu_mem_usage` only matters on the meta device, where adapters can't be initialised.
    wrapper = get_peft_model(model, lora_config(lora), low_cpu_mem_usage=model.device.type == "meta")
    layers = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    model.autocast_language = low_precision
    model.autocast_vision = low_precision and any(not name.startswith("language_model") for name, _ in layers)
    for _, layer in layers:
        # Under autocast the adapter's float32 weights are cast, not its input: half the memory traffic.
        layer.cast_input_dtype_enabled = not low_precision
    return wrapper


def merge_adapter(model: OpenVLA, adapter: str | os.PathLike[str]) -> str:
    """
    Add a trained adapter to the weights for good, computed in float32, so that "adapter off" later means this start.

    :param model: The model, changed in place.
    :param adapter: PEFT folder or hub id.
    :return: A fingerprint of the adapter.
    :raises ValueError: If the folder is no adapter, or one for other modules.
    """
    from peft import PeftModel

    folder = _adapter_folder(adapter)
    try:
        wrapper = PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"adapter={str(adapter)!r} does not fit this checkpoint: {error}") from error
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "lora_A"):
            _add_merged(layer, name)
    wrapper.unload()
    digest = hashlib.sha256((folder / "adapter_config.json").read_bytes())
    digest.update((folder / "adapter_model.safetensors").read_bytes())
    return digest.hexdigest()


def _adapter_folder(adapter: str | os.PathLike[str]) -> Path:
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        if str(adapter).count("/") != 1:
            raise ValueError(f"adapter={str(adapter)!r} is neither a folder nor a hub id (owner/name).")
        folder = find_checkpoint(adapter)
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"adapter={str(adapter)!r} is not a PEFT adapter folder: it lacks {', '.join(missing)}.")
    return folder


@th.no_grad()
def _add_merged(layer: Any, name: str) -> None:
    weight = layer.get_base_layer().weight
    for active in layer.active_adapters:
        delta = layer.get_delta_weight(active)
        if delta.shape != weight.shape:
            raise ValueError(f"The adapter's update of {name} has shape {tuple(delta.shape)}, not {tuple(weight.shape)}.")
        weight.copy_(weight.float() + delta.float())


@th.no_grad()
def merged_state_dict(model: OpenVLA, dtype: th.dtype = th.float32) -> dict[str, th.Tensor]:
    """
    The model's weights with adapters added in float32, under the checkpoint's names; the model itself is unchanged.

    :param dtype: Precision of the result, on the CPU.
    :raises ValueError: If the base is quantised.
    """
    if model.is_loaded_in_4bit:
        raise ValueError("A 4-bit base can't be merged: load the policy with quantization=None, its adapter, and export then.")
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    merged: dict[str, th.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".base_layer.")
        if not owner:
            merged[name] = tensor.detach().to("cpu", dtype)
            continue
        full = tensor.detach().float()
        if leaf == "weight":
            for active in layers[owner].active_adapters:
                full = full + layers[owner].get_delta_weight(active).float()
        merged[f"{owner}.{leaf}"] = full.to("cpu", dtype)
    return merged


def export_merged(
    model: OpenVLA, folder: str | os.PathLike[str], dtype: th.dtype = th.bfloat16, config: Mapping[str, Any] | None = None
) -> Path:
    """
    Write base plus adapter as one checkpoint in the upstream layout.

    :param model: The model with its adapters.
    :param folder: Where to.
    :param dtype: Precision on disk. bfloat16 (upstream's) rounds the sum: see :func:`token_flip_rate`.
    :param config: Entries to change in ``config.json``.
    """
    return save_openvla(model, folder, state_dict=merged_state_dict(model, dtype), config=config, dtype=dtype)


@th.no_grad()
def token_flip_rate(
    first: OpenVLA,
    second: OpenVLA,
    pixel_values: th.Tensor,
    input_ids: th.Tensor | list[list[int]],
    n_tokens: int = DEFAULT_ACTION_DIM,
) -> float:
    """
    Share of greedy tokens in which two models differ, each token given the first model's previous ones.

    :param pixel_values: ``(batch, 6, size, size)``.
    :param input_ids: Prompts.
    :param n_tokens: Tokens per action.
    """
    tokens, _ = first.generate_action_tokens(pixel_values, input_ids, n_tokens=n_tokens)
    expected = first.action_logits(pixel_values, input_ids, tokens).argmax(-1)
    other = second.action_logits(pixel_values.to(second.device), input_ids, tokens).argmax(-1)
    return float((expected.cpu() != other.cpu()).float().mean())


def export_adapter(wrapper: "PeftModel", folder: str | os.PathLike[str], base: str, unnorm_key: str, assets: str) -> Path:
    """
    Write the adapter alone as a PEFT folder with a model card.

    :param wrapper: PEFT's wrapper.
    :param folder: Where to.
    :param base: Checkpoint the adapter belongs to (hub id or path).
    :param unnorm_key: Action statistics it was trained with.
    :param assets: LIBERO assets it was trained with.
    """
    folder = Path(folder)
    wrapper.peft_config["default"].base_model_name_or_path = base
    wrapper.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").write_text(_model_card(wrapper.peft_config["default"], base, unnorm_key, assets), encoding="utf-8")
    return folder


def _model_card(config: Any, base: str, unnorm_key: str, assets: str) -> str:
    header = {"library_name": "peft", "pipeline_tag": "robotics", "tags": ["openvla", "lora", "tgrpo", "sb3-tgrpo", "libero"]}
    if base.count("/") == 1 and not base.startswith(("/", ".")):
        header["base_model"] = base
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    return (
        f"---\n{lines}\n---\n\n# OpenVLA adapter trained with sb3-tgrpo\n\n"
        f"LoRA (rank {config.r}, alpha {config.lora_alpha}) for the checkpoint `{base}`. Action statistics: `{unnorm_key}`. "
        f"LIBERO assets in training: `{assets}`.\n\n"
        "```python\nfrom peft import PeftModel\nfrom sb3_tgrpo.openvla import load_openvla\n\n"
        f'model = PeftModel.from_pretrained(load_openvla("{base}"), "path/to/this/folder")\n```\n\n'
        'Within sb3-tgrpo: `policy_kwargs=dict(adapter="path/to/this/folder")`, which merges it before a new adapter starts.\n'
    )
