"""The two vision transformers of OpenVLA, module by module named as in timm, so that checkpoints load without renaming."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_tgrpo.openvla.config import TowerConfig

_LAYER_NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Non-overlapping patches to vectors, row by row."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: th.Tensor) -> th.Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # exact (erf) GELU in both towers


class LayerScale(nn.Module):
    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        # Upstream renamed timm's `gamma`, which old transformers rewrote on loading.
        self.scale_factor = nn.Parameter(th.full((dim,), init_value))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.attn = Attention(dim, config.num_heads)
        self.ls1 = nn.Identity() if config.init_values is None else LayerScale(dim, config.init_values)
        self.norm2 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.ls2 = nn.Identity() if config.init_values is None else LayerScale(dim, config.init_values)

    def forward(self, x: th.Tensor) -> th.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """SigLIP's pooling head. Checkpoints carry its weights; OpenVLA never runs it."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.latent = nn.Parameter(th.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))


class VisionTower(nn.Module):
    """
    A vision transformer whose features leave after its last block but one, without the final norm.

    :param config: Sizes. The last block, the final norm and the pooling head exist for the checkpoint's sake.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.n_prefix = config.reg_tokens + int(config.class_token)
        if config.class_token:
            self.cls_token = nn.Parameter(th.zeros(1, 1, dim))
        if config.reg_tokens:
            self.reg_token = nn.Parameter(th.zeros(1, config.reg_tokens, dim))
        self.pos_embed = nn.Parameter(th.zeros(1, config.n_patches, dim))
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        if config.global_pool == "map":
            self.attn_pool = AttentionPool(config)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Patch features ``(batch, patches, dim)`` of normalised images ``(batch, 3, size, size)``."""
        x = self.patch_embed(x) + self.pos_embed
        prefix = [getattr(self, name).expand(len(x), -1, -1) for name in ("cls_token", "reg_token") if hasattr(self, name)]
        x = th.cat([*prefix, x], dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        return x[:, self.n_prefix :]


class VisionBackbone(nn.Module):
    """DINOv2 and SigLIP side by side on the same patches, joined along the feature axis, DINOv2 first."""

    def __init__(self, towers: dict[str, TowerConfig], patch_merge: int = 1) -> None:
        super().__init__()
        self.featurizer = VisionTower(towers["featurizer"])
        self.fused_featurizer = VisionTower(towers["fused_featurizer"])
        self.patch_merge = patch_merge

    def forward(self, pixel_values: th.Tensor) -> th.Tensor:
        """``(batch, visual tokens, vision width)`` of ``(batch, 6, size, size)``, the first three channels for DINOv2."""
        first, second = pixel_values.split(3, dim=1)
        features = th.cat([self.featurizer(first), self.fused_featurizer(second)], dim=2)
        if self.patch_merge == 1:
            return features
        batch, patches, dim = features.shape
        side, m = int(patches**0.5) // self.patch_merge, self.patch_merge
        squares = features.view(batch, side, m, side, m, dim).permute(0, 1, 3, 2, 4, 5)
        return squares.reshape(batch, side * side, m * m * dim)


class Projector(nn.Module):
    """Vision features to the language model's embedding space: three layers with exact GELU in between."""

    def __init__(self, vision_dim: int, text_dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = 4 * vision_dim if hidden is None else hidden
        self.fc1 = nn.Linear(vision_dim, hidden)
        self.fc2 = nn.Linear(hidden, text_dim)
        self.fc3 = nn.Linear(text_dim, text_dim)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))
