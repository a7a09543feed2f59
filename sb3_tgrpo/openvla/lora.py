"""Adapters on OpenVLA through PEFT: which modules, starting from a given adapter, and getting the result out again."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch as th
from torch.nn import functional as F

from sb3_tgrpo.openvla.actions import check_statistics
from sb3_tgrpo.openvla.checkpoint import find_checkpoint, is_hub_id, warn_of_ends
from sb3_tgrpo.openvla.conventions import Conventions
from sb3_tgrpo.openvla.folder import read_json
from sb3_tgrpo.openvla.loading import some
from sb3_tgrpo.openvla.model import OpenVLA

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_RECORD = "sb3_tgrpo.json"

# Written in any case. Other settings only where they differ from PEFT's default: old versions refuse unknown names.
_PLAIN_SETTINGS = (
    "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules",
    "bias", "init_lora_weights", "fan_in_fan_out", "modules_to_save",
)  # fmt: skip

# What "all-linear" meant in the PEFT release the upstream checkpoints were made with: 436 linear layers, both patch
# embeddings and lm_head. Today's "all-linear" leaves the last three out, so the names are spelled out.
UPSTREAM_MODULES = (
    "qkv", "proj", "fc1", "fc2", "fc3", "q", "kv", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
    "down_proj", "lm_head",
)  # fmt: skip

LANGUAGE_MODULES = r"language_model\.(.*\.(q|k|v|o|gate|up|down)_proj|lm_head)"

# Settings with which an adapter is more than a product of two matrices added to the weights it names.
_NOT_PLAIN = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
    "layer_replication", "use_qalora", "use_bdlora", "kasa_config", "arrow_config", "monteclora_config",
)  # fmt: skip

# Ways to initialise that leave the base as it is. PiSSA and others subtract the adapter's start from it.
_BASE_STAYS = (True, False, "gaussian", "orthogonal", "eva")

Factors = dict[str, tuple[th.Tensor, th.Tensor]]
"""``A`` and ``B`` of each module, the scaling within ``B``."""


@dataclass(frozen=True)
class AdapterRecord:
    """
    What lies beside an adapter as JSON: everything that is needed to use it.

    :param base: Hub id or folder name of the checkpoint that it belongs to, None if it is not recorded.
    :param base_identity: Fingerprint of that checkpoint.
    :param conventions: What inputs and outputs mean.
    :param statistics: Action statistics by name.
    :param temperature: Sampling temperature of its training.
    """

    base: str | None = None
    base_identity: str | None = None
    conventions: Conventions = field(default_factory=Conventions)
    statistics: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0

    @classmethod
    def read(cls, adapter: str | os.PathLike[str]) -> "AdapterRecord":
        """The record of an adapter, a PEFT folder or hub id; empty for one that was not made by this package."""
        path = adapter_folder(adapter) / ADAPTER_RECORD
        if not path.is_file():
            return cls()
        raw = read_json(path)
        own = ("base", "base_identity", "statistics", "temperature")
        if missing := [name for name in own if name not in raw]:
            raise ValueError(f"adapter={str(adapter)!r}: {path} is damaged (it lacks {', '.join(missing)}). Get it again.")
        check_statistics(raw["statistics"], str(path))
        return cls(conventions=Conventions.read(raw, str(path)), **{name: raw[name] for name in own})

    def to_json(self) -> str:
        """The file's content."""
        values = {name: value for name, value in vars(self).items() if name != "conventions"}
        return json.dumps({**values, **self.conventions.record()}, indent=2, default=lambda array: array.tolist()) + "\n"

    def check_base(self, adapter: str, named: str | None, model: OpenVLA, checkpoint: str) -> None:
        """
        Refuse another base than the recorded one: of the same shapes it would only act differently. Of an adapter of another
        origin nothing can be compared but the base's name in PEFT's configuration.
        """
        if self.base_identity == model.identity:
            return
        if self.base_identity is not None:
            if self.base_identity != model.identity_by_ends:
                raise ValueError(
                    f"adapter={adapter!r} was trained on another base ({self.base!r}) than {checkpoint!r}: pass the "
                    "checkpoint it belongs to. If that one was written anew, train the adapter again or merge it with PEFT."
                )
            warn_of_ends(checkpoint)
        elif named and named != checkpoint and Path(named).name != Path(checkpoint).name:
            problem = f"adapter={adapter!r} is for {named!r}"
            if is_hub_id(named) and is_hub_id(checkpoint):
                raise ValueError(f"{problem}, not for {checkpoint!r}: pass the checkpoint it belongs to.")
            warnings.warn(f"{problem}; that {checkpoint!r} is the same cannot be checked.", stacklevel=4)


@dataclass(frozen=True)
class StartAdapter:
    """
    An adapter that was merged into the weights before training.

    :param name: Its folder or hub id.
    :param fingerprint: Of its files.
    :param factors: Its matrices, on the CPU; None if they are not the whole difference to the checkpoint.
    """

    name: str
    fingerprint: str
    factors: Factors | None


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
    """Put fresh adapters on a model, in place; only they are trainable afterwards. PEFT's wrapper is returned."""
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


def merge_adapter(model: OpenVLA, adapter: str | os.PathLike[str], checkpoint: str) -> StartAdapter:
    """
    Add a trained adapter to a model's weights for good, computed in float32, so that "adapter off" later means this start.

    :param checkpoint: Name of the checkpoint that the model was loaded from.
    :raises ValueError: If the folder is no adapter, a damaged one, or one for other modules or another base.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    folder = adapter_folder(adapter)
    config = _plain_config(folder, adapter)
    AdapterRecord.read(adapter).check_base(str(adapter), config.base_model_name_or_path, model, checkpoint)
    try:
        wrapper = PeftModel.from_pretrained(model, str(folder), config=config)
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        what = " ".join(str(error).split())[:400]  # of wrong shapes PEFT has a line for every tensor
        raise ValueError(f"adapter={str(adapter)!r} does not fit this checkpoint: {what}") from error
    _check_weights(wrapper, folder, adapter)
    factors = _factors(model) if config.init_lora_weights in _BASE_STAYS else None
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "lora_A"):
            layer.get_base_layer().weight.copy_(_merged_weight(layer, name))
    wrapper.unload()
    # Of the record too: statistics and gripper change actions as weights do.
    files = [folder / name for name in (ADAPTER_CONFIG, "adapter_model.safetensors", ADAPTER_RECORD)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file()))
    return StartAdapter(str(adapter), digest.hexdigest(), factors)


def _plain_config(folder: Path, adapter: str | os.PathLike[str]) -> "LoraConfig":
    from peft import LoraConfig, PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"adapter={str(adapter)!r}: {folder / ADAPTER_CONFIG} is damaged ({error!r}). Get the adapter again."
        ) from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"adapter={str(adapter)!r} is of PEFT's type {config.peft_type}: only LoRA can be a start.")
    bias = [] if config.bias == "none" else ["bias"]
    if special := [name for name in _NOT_PLAIN if getattr(config, name, None)] + bias:
        raise ValueError(
            f"adapter={str(adapter)!r} uses {', '.join(special)}: only plain low-rank adapters can be merged here. Merge it "
            "with PEFT and pass the result as checkpoint."
        )
    return config


def _check_weights(wrapper: "PeftModel", folder: Path, adapter: str | os.PathLike[str]) -> None:
    """PEFT warns of missing keys, ignores keys that it has no place for, and takes values that are not finite."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    held = load_file(str(folder / "adapter_model.safetensors"))
    expected = set(get_peft_model_state_dict(wrapper, save_embedding_layers=False))
    missing, unexpected = sorted(expected - set(held)), sorted(set(held) - expected)
    if missing or unexpected or not held:
        raise ValueError(
            f"adapter={str(adapter)!r} does not fit this checkpoint: {len(missing)} of its {len(expected)} tensors are "
            f"missing{some(missing)}, {len(unexpected)} have no place{some(unexpected)}. Pass an adapter that was made for it."
        )
    if infinite := sorted(name for name, tensor in held.items() if not tensor.isfinite().all()):
        raise ValueError(
            f"adapter={str(adapter)!r}: {len(infinite)} tensors hold values that are not finite{some(infinite)}. "
            "Pass an adapter whose training did not diverge."
        )


@th.no_grad()
def _factors(model: OpenVLA) -> Factors | None:
    """The adapter's matrices, on the CPU; None where a layer keeps them in another form (embeddings do)."""
    factors: Factors = {}
    for name, layer in model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        for active in layer.active_adapters:
            if active not in layer.lora_A or getattr(layer, "fan_in_fan_out", False):
                return None
            first, second = layer.lora_A[active].weight, layer.lora_B[active].weight
            factors[name] = first.detach().float().cpu().clone(), second.detach().float().cpu() * layer.scaling[active]
    return factors


def adapter_folder(adapter: str | os.PathLike[str]) -> Path:
    """Folder of an adapter, after downloading it if need be; a ValueError if there is none."""
    folder = Path(adapter).expanduser()
    if not folder.is_dir():
        if not is_hub_id(str(adapter)):
            raise ValueError(f"adapter={str(adapter)!r} is neither a folder nor a hub id (owner/name).")
        folder = find_checkpoint(adapter)
    missing = [name for name in (ADAPTER_CONFIG, "adapter_model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"adapter={str(adapter)!r} is not a PEFT adapter folder: it lacks {', '.join(missing)}.")
    return folder


@th.no_grad()
def _merged_weight(layer: Any, name: str) -> th.Tensor:
    """A layer's weight with its adapters added, float32."""
    weight = layer.get_base_layer().weight.float()
    for active in layer.active_adapters:
        delta = layer.get_delta_weight(active)
        if delta.shape != weight.shape:
            raise ValueError(f"The adapter's update of {name} has shape {tuple(delta.shape)}, not {tuple(weight.shape)}.")
        weight = weight + delta.float()
    return weight


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
        full = _merged_weight(layers[owner], owner) if owner and leaf == "weight" else tensor.detach()
        merged[f"{owner}.{leaf}" if owner else name] = full.to("cpu", dtype)
    return merged


def export_adapter(
    wrapper: "PeftModel", folder: str | os.PathLike[str], record: AdapterRecord, start: StartAdapter | None = None
) -> Path:
    """
    Write the adapter alone as a PEFT folder with a model card. One that was trained on top of another is written together
    with it, as one adapter of the sum of their ranks, so that the folder fits the bare checkpoint.

    :param start: Adapter that was merged before training.
    :raises ValueError: If the two can't be written as one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=folder) as name:
        unfinished = Path(name)
        config: Any = wrapper.peft_config["default"]
        if start is None:
            wrapper.save_pretrained(str(unfinished), safe_serialization=True, save_embedding_layers=False)
        else:
            config = _save_stacked(wrapper, unfinished, str(record.base), start)
        _simplify_config(unfinished / ADAPTER_CONFIG, str(record.base))
        (unfinished / ADAPTER_RECORD).write_text(record.to_json(), encoding="utf-8")
        (unfinished / "README.md").write_text(_model_card(config, record, start), encoding="utf-8")
        _move_adapter(unfinished, folder)
    return folder


def _simplify_config(path: Path, base: str) -> None:
    """Leave the settings that old versions of PEFT read, and others only where they matter."""
    from peft import LoraConfig

    usual = json.loads(json.dumps(LoraConfig().to_dict(), default=str))
    settings = {**read_json(path), "base_model_name_or_path": base}
    kept = {name: value for name, value in settings.items() if name in _PLAIN_SETTINGS or value != usual.get(name)}
    for name in ("peft_version", "auto_mapping"):
        kept.pop(name, None)
    if isinstance(kept["target_modules"], list):
        kept["target_modules"].sort()
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _move_adapter(unfinished: Path, folder: Path) -> None:
    # While there is no config the folder is no adapter: never weights of one with the rank of another.
    (folder / ADAPTER_CONFIG).unlink(missing_ok=True)
    for file in sorted(unfinished.iterdir(), key=lambda file: file.name == ADAPTER_CONFIG):
        file.chmod(0o644)  # safetensors writes for the owner alone
        os.replace(file, folder / file.name)


def _save_stacked(wrapper: "PeftModel", folder: Path, base: str, start: StartAdapter) -> "LoraConfig":
    from peft import LoraConfig
    from safetensors.torch import save_file

    trained: Any = wrapper.peft_config["default"]
    own = _factors(wrapper.get_base_model()) if trained.init_lora_weights in _BASE_STAYS else None  # type: ignore[arg-type]
    if start.factors is None or own is None:
        raise ValueError(
            f"The start adapter {start.name!r} and the one trained on it can't be written as one adapter for {base!r} (one of "
            "them is on embeddings, or changed the base when it was initialised): use export_merged."
        )
    stacked = stack_factors(start.factors, own)
    rank = len(next(iter(stacked.values()))[0])
    # With alpha = rank PEFT multiplies by 1: the scalings, which may differ, are within B.
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=sorted(stacked), base_model_name_or_path=base, inference_mode=True
    )  # fmt: skip
    config.save_pretrained(str(folder))
    tensors = {}
    for name, (first, second) in stacked.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = first
        tensors[f"base_model.model.{name}.lora_B.weight"] = second
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    return config


def stack_factors(first: Factors, second: Factors) -> Factors:
    """
    Factors of one adapter whose update is the sum of two, the modules of which may differ. All modules have the same rank,
    filled up with zeros where an adapter does not reach it.
    """
    sums: Factors = {}
    for name in {**first, **second}:
        parts = [factors[name] for factors in (first, second) if name in factors]
        sums[name] = th.cat([a for a, _ in parts], dim=0), th.cat([b for _, b in parts], dim=1)
    rank = max(len(a) for a, _ in sums.values())

    def filled(matrix: th.Tensor, dim: int) -> th.Tensor:  # convolutions have two more dimensions
        return F.pad(matrix, [0, 0] * (matrix.ndim - 1 - dim) + [0, rank - matrix.shape[dim]]).contiguous()

    return {name: (filled(a, 0), filled(b, 1)) for name, (a, b) in sums.items()}


def _model_card(config: Any, record: AdapterRecord, start: StartAdapter | None) -> str:
    base, conventions = str(record.base), record.conventions
    header = {"library_name": "peft", "pipeline_tag": "robotics", "tags": ["openvla", "lora", "tgrpo", "sb3-tgrpo", "libero"]}
    if is_hub_id(base):
        header["base_model"] = base
    within = ""
    if start is not None:
        name = start.name if is_hub_id(start.name) else Path(start.name).name
        within = f"It contains the adapter `{name}`, on top of which it was trained. "
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    return (
        f"---\n{lines}\n---\n\n# OpenVLA adapter trained with sb3-tgrpo\n\n"
        f"LoRA (rank {config.r}, alpha {config.lora_alpha}) for the checkpoint `{base}`. {within}"
        f"Action statistics: `{conventions.unnorm_key}`. LIBERO assets in training: `{conventions.assets}`. "
        f"`{ADAPTER_RECORD}` holds these and the fingerprint of the checkpoint.\n\n"
        "```python\nfrom peft import PeftModel\nfrom sb3_tgrpo.openvla import load_openvla\n\n"
        f'model = PeftModel.from_pretrained(load_openvla("{base}"), "path/to/this/folder")\n```\n\n'
        'Within sb3-tgrpo: `policy_kwargs=dict(adapter="path/to/this/folder")`, which merges it before a new adapter starts.\n'
    )
