"""An estimate of the memory that a training run takes."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch as th

from sb3_tgrpo.doctor.finding import Check, DoctorContext, Found, MemoryPlan
from sb3_tgrpo.envs.registration import STEP_CAPS

if TYPE_CHECKING:
    from sb3_tgrpo.openvla.config import OpenVLAConfig
    from sb3_tgrpo.openvla.model import OpenVLA


def free_memory(device: str) -> tuple[float, str]:
    """Free bytes where a policy would go, and its name."""
    if device != "cpu" and th.cuda.is_available():
        return float(th.cuda.mem_get_info()[0]), "the GPU"
    with open("/proc/meminfo", encoding="ascii") as file:
        available = next(line for line in file if line.startswith("MemAvailable"))
    return 1024.0 * int(available.split()[1]), "this machine"


def memory_parts(config: "OpenVLAConfig", plan: MemoryPlan, device: str, suite: str) -> dict[str, float]:
    """Bytes that a training run in a suite takes, from shapes; what allocators and contexts add is left out."""
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
    adapted = None if plan.lora is None else adapted_modules(model, plan.lora)
    sees = adapted is None or any(not name.startswith("language_model") for name in adapted)
    members = plan.group_size * plan.parallel_groups
    steps = plan.n_steps if plan.n_steps is not None else STEP_CAPS.get(suite, 300)
    batch = plan.micro_batch_size if plan.micro_batch_size is not None else plan.group_size * steps
    per_layer = float(batch * length * (10 * hidden + 6 * inner) * width)
    kept = 1 if plan.gradient_checkpointing else layers
    if adapted is None:
        state = 3.0 * n_parameters * width  # gradient and AdamW's two moments, like the weights that are trained in place
    else:
        state = 16.0 * sum(adapted.values())  # float32 weight, gradient and two moments
    # With a trained vision side, preprocessed pictures are cached instead of their embeddings.
    frame = 3 * config.image_size**2 if sees else config.n_visual_tokens * hidden * width
    return {
        "weights": weights,
        "training state": state,
        "reference copy": 0.0 if plan.lora is not None else weights,
        "cached images" if sees else "image embeddings": float(min(members * steps * frame, 2 * 2**30)),
        "key-value cache": float(members * length * layers * 2 * hidden * width),
        "activations": per_layer * kept + (batch * length * hidden * layers * width if plan.gradient_checkpointing else 0.0),
        "vision activations": float(batch * vision_activations(model) * width) if sees else 0.0,
    }


def vision_activations(model: "OpenVLA") -> int:
    """Numbers per picture that trained towers and projector keep for the backward pass, with gradient checkpointing too."""
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


def adapted_modules(model: th.nn.Module, lora: str) -> dict[str, int]:
    """Parameters of an adapter by the names of the modules that get one. Attaching it takes PEFT seconds at full size."""
    from peft.tuners.tuners_utils import check_target_module_exists

    from sb3_tgrpo.openvla.lora import lora_config

    config = lora_config(lora)
    return {
        name: config.r * (module.weight[0].numel() + module.weight.shape[0])
        for name, module in model.named_modules()
        if isinstance(module, th.nn.Linear | th.nn.Conv2d) and check_target_module_exists(config, name)
    }


@partial(Check, "memory")
def check_memory(context: DoctorContext) -> Found:
    """Free memory against an estimate for the planned run."""
    free, where = free_memory(context.device)
    if context.plan is None or context.checkpoint is None:
        return "not checked", f"{where} has {free / 1e9:.1f} GB free", "--plan and --checkpoint estimate a run"
    if context.checkpoint.is_here:
        config = context.checkpoint.config
    elif context.checkpoint.is_upstream:
        config = upstream_config()
    else:
        return "not checked", f"{context.checkpoint} is not on this machine yet: its sizes are not known", ""
    parts = memory_parts(config, context.plan, context.device, context.task.suite)
    total = sum(parts.values())
    listed = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in parts.items() if size >= 5e7)
    found = f"about {total / 1e9:.1f} GB ({listed}); {where} has {free / 1e9:.1f} GB free"
    if total <= free:
        return "ok", found, ""
    remedy = "Smaller micro_batch_size, gradient_checkpointing=True, dtype='bfloat16', quantization='4bit', lora='language'."
    return "failed", found, remedy


def upstream_config() -> "OpenVLAConfig":
    """OpenVLA-7B's sizes, which need no file."""
    from sb3_tgrpo.openvla.config import OpenVLAConfig

    towers = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]
    text = {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064}
    raw = {"n_action_bins": 256, "pad_to_multiple_of": 64, "text_config": text, "timm_model_ids": towers}
    return OpenVLAConfig.from_dict(raw, "OpenVLA-7B")
