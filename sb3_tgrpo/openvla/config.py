"""Reading an OpenVLA checkpoint's ``config.json``: tower and language-model sizes, action vocabulary, statistics."""

from dataclasses import dataclass, field
from typing import Any

from sb3_tgrpo.openvla.conventions import Conventions

# timm's model ids fix the towers' sizes in the upstream checkpoints; a config with `vision_towers` states them itself.
_UPSTREAM_TOWERS: dict[str, dict[str, Any]] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": {
        "patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4.0, "init_values": 1e-5,
        "reg_tokens": 4, "class_token": True, "img_size": 224,
    },
    "vit_so400m_patch14_siglip_224": {
        "patch_size": 14, "embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362,
        "class_token": False, "global_pool": "map", "img_size": 224,
    },
}  # fmt: skip

# The LLM's sizes are not in the upstream config either: they are Llama-2-7b's, except for rms_norm_eps, which the
# checkpoints never set and therefore is transformers' 1e-6 and not Llama-2's own 1e-5.
_LLAMA_2_7B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

TINY_SEED = 20250608
"""Seed of the tiny checkpoint's weights."""

TINY_IDENTITY = f"tiny-{TINY_SEED}"
_TINY_VOCABULARY, _TINY_PADDING = 1024, 64


@dataclass(frozen=True)
class TowerConfig:
    """One vision transformer, with timm's argument names."""

    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    img_size: int
    mlp_ratio: float = 4.0
    init_values: float | None = None
    reg_tokens: int = 0
    class_token: bool = True
    global_pool: str = "token"
    no_embed_class: bool = True

    @property
    def n_patches(self) -> int:
        return (self.img_size // self.patch_size) ** 2


@dataclass(frozen=True)
class OpenVLAConfig:
    """
    What the model needs from ``config.json``.

    :param towers: Tower sizes by name, ``featurizer`` (DINOv2) first.
    :param text_config: Arguments of transformers' ``LlamaConfig``, complete.
    :param n_action_bins: Number of action ids (bins) a token is chosen from.
    :param action_vocab_end: One past the last action id: the text vocabulary without its padding (32000 upstream).
    :param norm_stats: Action statistics by dataset name.
    :param patch_merge: Side of the square of neighbouring patches joined to one visual token (1 upstream).
    :param projector_hidden: Width of the projector's first layer (four times the vision width upstream).
    :param pipeline: Image preprocessing, ``"libero"`` (JPEG, Lanczos, centre crop) or ``"area"`` (average pooling).
    :param conventions: What its inputs and outputs mean.
    :param raw: The file's content, written back by ``save_openvla``.
    """

    towers: dict[str, TowerConfig]
    text_config: dict[str, Any]
    n_action_bins: int
    action_vocab_end: int
    norm_stats: dict[str, Any]
    patch_merge: int = 1
    projector_hidden: int | None = None
    pipeline: str = "libero"
    conventions: Conventions = field(default_factory=Conventions)
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def image_size(self) -> int:
        return next(iter(self.towers.values())).img_size

    @property
    def vision_dim(self) -> int:
        return sum(tower.embed_dim for tower in self.towers.values()) * self.patch_merge**2

    @property
    def n_visual_tokens(self) -> int:
        return next(iter(self.towers.values())).n_patches // self.patch_merge**2

    @property
    def action_vocab_begin(self) -> int:
        """First action id (31744 upstream)."""
        return self.action_vocab_end - self.n_action_bins

    @classmethod
    def from_dict(cls, raw: dict[str, Any], source: str = "config.json") -> "OpenVLAConfig":
        """Read a parsed ``config.json``; messages of what it lacks name its ``source``."""
        towers = "vision_towers" if "vision_towers" in raw else "timm_model_ids"
        if missing := [key for key in ("text_config", "n_action_bins", "pad_to_multiple_of", towers) if key not in raw]:
            raise ValueError(
                f"{source} is not an OpenVLA configuration: it lacks {', '.join(missing)} "
                f"(model_type is {raw.get('model_type')!r}). Use a folder with the layout of openvla/openvla-7b."
            )
        for key in ("text_config", "sb3_tgrpo"):
            if not isinstance(raw.get(key, {}), dict):
                raise ValueError(f"{source}: {key} must be an object, got {raw[key]!r}.")
        ours = raw.get("sb3_tgrpo", {})
        text_config = {**_LLAMA_2_7B, **raw["text_config"]}
        text_config.pop("torch_dtype", None)
        pipeline = ours.get("preprocessing", "libero")
        if pipeline not in ("libero", "area"):
            raise ValueError(f"{source}: sb3_tgrpo.preprocessing must be 'libero' or 'area', got {pipeline!r}.")
        return cls(
            towers=_read_towers(raw, source),
            text_config=text_config,
            n_action_bins=int(raw["n_action_bins"]),
            action_vocab_end=int(text_config["vocab_size"]) - int(raw["pad_to_multiple_of"]),
            norm_stats=raw.get("norm_stats", {}),
            patch_merge=int(ours.get("patch_merge", 1)),
            projector_hidden=ours.get("projector_hidden"),
            pipeline=pipeline,
            conventions=Conventions.read(ours, source),
            raw=raw,
        )


def _read_towers(raw: dict[str, Any], source: str) -> dict[str, TowerConfig]:
    if "vision_towers" in raw:
        described = raw["vision_towers"]
    else:
        unknown = [name for name in raw["timm_model_ids"] if name not in _UPSTREAM_TOWERS]
        if unknown or len(raw["timm_model_ids"]) != 2:
            raise ValueError(
                f"{source}: vision towers {raw['timm_model_ids']} are not supported; OpenVLA-7B has "
                f"{list(_UPSTREAM_TOWERS)}. A checkpoint with other towers must state their sizes under 'vision_towers'."
            )
        names = ("featurizer", "fused_featurizer")
        described = {name: _UPSTREAM_TOWERS[timm_id] for name, timm_id in zip(names, raw["timm_model_ids"], strict=True)}
    try:
        towers = {name: TowerConfig(**described[name]) for name in ("featurizer", "fused_featurizer")}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source}: vision_towers must describe featurizer and fused_featurizer: {error}.") from error
    if any(tower.depth < 2 for tower in towers.values()):
        raise ValueError(f"{source}: a vision tower needs at least 2 blocks (features leave the last but one).")
    return towers


def tiny_config() -> dict[str, Any]:
    """The ``config.json`` of the tiny checkpoint."""
    return {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "arch_specifier": "no-align+fused-gelu-mlp",
        "image_sizes": [64, 64],
        "n_action_bins": 256,
        "norm_stats": {},
        "pad_to_multiple_of": _TINY_PADDING,
        "pad_token_id": _TINY_VOCABULARY,
        "text_config": {
            "model_type": "llama", "vocab_size": _TINY_VOCABULARY + _TINY_PADDING, "pad_token_id": _TINY_VOCABULARY,
            "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        },
        "use_fused_vision_backbone": True,
        "vision_towers": {
            "featurizer": {
                "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "init_values": 1.0, "reg_tokens": 4,
                "img_size": 64,
            },
            "fused_featurizer": {
                "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 3.7362, "class_token": False,
                "global_pool": "map", "img_size": 64,
            },
        },
        "sb3_tgrpo": {"preprocessing": "area", "patch_merge": 2, "projector_hidden": 192},
    }  # fmt: skip
