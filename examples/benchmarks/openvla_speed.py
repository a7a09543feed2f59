"""
Speed and memory of OpenVLA's rollout step and update, against the usual way, in one run on the same weights and inputs.

    python examples/benchmarks/openvla_speed.py                              # a small model on the CPU, about two minutes
    python examples/benchmarks/openvla_speed.py --size 7b --device cuda      # 7.5 B random weights, bfloat16

The usual way is what upstream and most forks do: one sample at a time through a cached generation loop with logits of the
whole vocabulary at every position; in the update the same logits, the vision towers run again, and a second model as the
reference. It is written tightly here (no ``generate()`` machinery) and uses the same attention kernels.
"""

import argparse
import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch as th
from torch.nn import functional as F

from sb3_tgrpo.openvla.config import OpenVLAConfig
from sb3_tgrpo.openvla.loading import build_empty, quantize_language_model, resolve_device
from sb3_tgrpo.openvla.lora import attach_lora
from sb3_tgrpo.openvla.model import OpenVLA

PROMPT_LENGTH = 33  # of a typical LIBERO instruction
ACTION_DIM = 7

_COMMON: dict[str, Any] = {"n_action_bins": 256, "pad_to_multiple_of": 64, "norm_stats": {}}
_TEXT = {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064}
CONFIGS: dict[str, dict[str, Any]] = {
    "7b": {
        **_COMMON,
        "text_config": _TEXT,
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    },
    # Upstream's images, patches, sequence length and vocabulary; widths and depths of a toy.
    "small": {
        **_COMMON,
        "text_config": {
            **_TEXT, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        "vision_towers": {
            "featurizer": {
                "patch_size": 14, "embed_dim": 128, "depth": 6, "num_heads": 2, "init_values": 1.0, "reg_tokens": 4,
                "img_size": 224,
            },
            "fused_featurizer": {
                "patch_size": 14, "embed_dim": 144, "depth": 6, "num_heads": 2, "mlp_ratio": 3.7362, "class_token": False,
                "global_pool": "map", "img_size": 224,
            },
        },
    },
}  # fmt: skip

# Memory bandwidth (bytes/s) and dense bfloat16 peak (FLOP/s), from the vendor's data sheets.
_GPUS = {"H200": (4.8e12, 989e12), "H100": (3.35e12, 989e12), "A100": (2.039e12, 312e12), "4090": (1.008e12, 165e12)}


def random_model(size: str, device: th.device, dtype: th.dtype, vocabulary: int, seed: int = 0) -> OpenVLA:
    """A model with random weights, made where it will live."""
    text = {**CONFIGS[size]["text_config"], "vocab_size": vocabulary, "pad_token_id": vocabulary - 64}
    model = build_empty(OpenVLAConfig.from_dict({**CONFIGS[size], "text_config": text}))
    generator = th.Generator(device).manual_seed(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        weight = th.empty(tensor.shape, device=device, dtype=dtype)
        scale = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight", "scale_factor"))
        state[name] = weight.fill_(1.0) if scale else weight.normal_(0.0, 0.02, generator=generator)
    model.load_state_dict(state, assign=True)
    model.reset_rotary(device)
    return model.eval().requires_grad_(False)


# ---------------------------------------------------------------------- the usual way


@th.no_grad()
def usual_rollout(model: OpenVLA, pixels: th.Tensor, input_ids: th.Tensor) -> th.Tensor:
    """One sample after the other, logits of the whole vocabulary at every position, a growing cache."""
    llama = model.language_model
    rows = []
    for i in range(len(pixels)):
        patches = model.projector(model.vision_backbone(pixels[i : i + 1]))
        text = llama.model.embed_tokens(input_ids[i : i + 1])
        output = llama(inputs_embeds=th.cat([text[:, :1], patches, text[:, 1:]], dim=1), use_cache=True)
        chosen = [th.multinomial(output.logits[:, -1].float().softmax(-1), 1)]
        for _ in range(ACTION_DIM - 1):
            output = llama(input_ids=chosen[-1], past_key_values=output.past_key_values, use_cache=True)
            chosen.append(th.multinomial(output.logits[:, -1].float().softmax(-1), 1))
        rows.append(th.cat(chosen, dim=1))
    return th.cat(rows)


def usual_log_prob(model: OpenVLA, pixels: th.Tensor, input_ids: th.Tensor, tokens: th.Tensor) -> th.Tensor:
    """Vision towers, then float32 log-softmax over the whole vocabulary at every position."""
    patches = model.projector(model.vision_backbone(pixels))
    text = model.language_model.model.embed_tokens(th.cat([input_ids, tokens], dim=1))
    logits = model.language_model(inputs_embeds=th.cat([text[:, :1], patches, text[:, 1:]], dim=1)).logits.float()
    log_probs = F.log_softmax(logits, dim=-1)[:, -ACTION_DIM - 1 : -1]
    return log_probs.gather(2, tokens.unsqueeze(2)).squeeze(2)


def usual_update(policy: OpenVLA, reference: OpenVLA, data: dict[str, th.Tensor], micro_batch: int) -> None:
    for part in micro_batches(data, micro_batch):
        args = part["pixels"], part["input_ids"], part["tokens"]
        log_prob = usual_log_prob(policy, *args)
        with th.no_grad():
            reference_log_prob = usual_log_prob(reference, *args)
        loss(log_prob, reference_log_prob, part["advantages"]).backward()


# ---------------------------------------------------------------------- ours


@th.no_grad()
def our_rollout(model: OpenVLA, pixels: th.Tensor, input_ids: th.Tensor) -> th.Tensor:
    return model.generate_action_tokens(pixels, input_ids, temperature=1.0)[0]


def our_update(policy: OpenVLA, wrapper: Any, data: dict[str, th.Tensor], micro_batch: int) -> None:
    """``data["patches"]`` are the rollout's projected embeddings: the vision side is frozen."""
    for part in micro_batches(data, micro_batch):
        prompts = policy.prompts(part["input_ids"])
        log_prob = our_log_prob(policy, part, prompts)
        with th.no_grad(), wrapper.disable_adapter():
            reference_log_prob = our_log_prob(policy, part, prompts)
        loss(log_prob, reference_log_prob, part["advantages"]).backward()


def our_log_prob(policy: OpenVLA, part: dict[str, th.Tensor], prompts: Any) -> th.Tensor:
    logits = policy.action_head(policy.action_hidden(part["patches"], prompts, part["tokens"]))
    index = (part["tokens"] - policy.config.action_vocab_begin).unsqueeze(2)
    return logits.log_softmax(-1).gather(2, index).squeeze(2)


# ---------------------------------------------------------------------- shared


def loss(log_prob: th.Tensor, reference: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    ratio = (log_prob.sum(1) - log_prob.sum(1).detach()).exp()
    kl = (reference - log_prob).exp() - (reference - log_prob) - 1
    return -(ratio * advantages).sum() + 0.04 * kl.sum()


def micro_batches(data: dict[str, th.Tensor], size: int) -> Any:
    for begin in range(0, len(data["tokens"]), size):
        yield {name: value[begin : begin + size] for name, value in data.items()}


class PeakMemory:
    """Peak bytes above what was in use at the start: the allocator's on CUDA, resident memory on the CPU."""

    def __init__(self, device: th.device) -> None:
        self.device = device
        self.peak = 0

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.device.type == "cuda":
            th.cuda.empty_cache()
            th.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # memory freed by whoever ran before would hide what comes
        self.base, self.running = self._used(), True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        if self.device.type == "cpu":
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False
        if self.device.type == "cuda":
            self.peak = th.cuda.max_memory_allocated()
        else:
            self.thread.join()
            self.peak = max(self.peak - self.base, 0)

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, self._used())
            time.sleep(0.005)

    def _used(self) -> int:
        if self.device.type == "cuda":
            return th.cuda.memory_allocated()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds(function: Callable[[], Any], device: th.device, repeats: int, clock: str) -> float:
    """The fastest of several runs after one to warm up."""
    now = time.perf_counter if clock == "wall" else time.process_time
    best = float("inf")
    for run in range(repeats + 1):
        synchronise(device)
        start = now()
        function()
        synchronise(device)
        if run:
            best = min(best, now() - start)
    return best


def synchronise(device: th.device) -> None:
    if device.type == "cuda":
        th.cuda.synchronize()


def count_parameters(module: th.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def rollout_bound(model: OpenVLA, batch: int, device: th.device) -> float | None:
    """Roofline of one rollout step in seconds: prefill by compute or weight bytes, six decode steps by bytes."""
    peaks = next((v for k, v in _GPUS.items() if device.type == "cuda" and k in th.cuda.get_device_name()), None)
    if peaks is None:
        return None
    bandwidth, flops = peaks
    llama = count_parameters(model.language_model) - count_parameters(model.language_model.model.embed_tokens)
    vision = count_parameters(model.vision_backbone) + count_parameters(model.projector)
    length = model.config.n_visual_tokens + PROMPT_LENGTH
    item = model.dtype.itemsize
    n_layers, hidden = model.language_model.config.num_hidden_layers, model.hidden_size
    cache = 2 * n_layers * hidden * length * item
    work = 2 * batch * (llama * length + vision * model.config.n_visual_tokens)
    prefill = max(work / flops, (llama + vision) * item / bandwidth)
    return prefill + (ACTION_DIM - 1) * (llama * item + batch * cache) / bandwidth


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[1], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", choices=CONFIGS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="rollout batch sizes")
    parser.add_argument("--group", type=int, default=4, help="trajectories in the update")
    parser.add_argument("--steps", type=int, help="steps per trajectory (default 220 on CUDA, 8 on the CPU)")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides; always with 7b")
    parser.add_argument("--vocabulary", type=int, default=32064, help="fewer ids show what is left without the head's share")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, for a busy machine")
    parser.add_argument("--quantization", choices=["4bit"], help="4-bit language model (CUDA, bitsandbytes)")
    parser.add_argument("--skip-usual-update", action="store_true", help="the second model may not fit")
    options = parser.parse_args()
    th.set_num_threads(options.threads)
    device = resolve_device(options.device)
    dtype = th.bfloat16 if device.type == "cuda" else th.float32
    steps = options.steps or (220 if device.type == "cuda" else 8)

    model = random_model(options.size, device, dtype, options.vocabulary)
    if options.quantization:
        quantize_language_model(model, device)
    where = th.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(
        f"{options.size}: {count_parameters(model):,} parameters, {dtype}, {where}, {options.clock} clock, "
        f"torch {th.__version__}"
    )
    wrapper = attach_lora(model, "language")
    checkpointing = options.gradient_checkpointing or options.size == "7b"
    model.gradient_checkpointing = checkpointing

    def inputs(n: int) -> tuple[th.Tensor, th.Tensor]:
        generator = th.Generator().manual_seed(1)
        pixels = th.randn(n, 6, model.config.image_size, model.config.image_size, generator=generator).to(device, dtype)
        return pixels, th.randint(3, model.config.action_vocab_begin, (1, PROMPT_LENGTH), generator=generator).expand(
            n, -1
        ).to(device)

    print(f"\n(a) rollout step from pixel_values, {ACTION_DIM} tokens, milliseconds, best of {options.repeats}")
    print(f"{'batch':>5} {'one by one':>12} {'ours':>10} {'ratio':>7} {'of roofline':>12}")
    for batch in options.batches:
        pixels, ids = inputs(batch)
        usual = seconds(lambda p=pixels, i=ids: usual_rollout(model, p, i), device, options.repeats, options.clock)
        ours = seconds(lambda p=pixels, i=ids: our_rollout(model, p, i), device, options.repeats, options.clock)
        bound = rollout_bound(model, batch, device)
        share = f"{100 * bound / ours:.0f} %" if bound else "-"
        print(f"{batch:>5} {1e3 * usual:>12.1f} {1e3 * ours:>10.1f} {usual / ours:>6.2f}x {share:>12}")

    n = options.group * steps
    pixels, ids = inputs(n)
    with th.no_grad():
        patches = th.cat([model.project(pixels[i : i + 8]) for i in range(0, n, 8)])
        tokens = th.cat([our_rollout(model, pixels[i : i + 8], ids[i : i + 8]) for i in range(0, n, 8)])
    data = {"input_ids": ids, "tokens": tokens, "advantages": th.linspace(-1, 1, n, device=device)}
    print(
        f"\n(b) update of {options.group} x {steps} steps, micro-batches of {options.micro_batch}, gradient and reference KL"
    )
    repeats = 1 if n > 100 else 2
    with PeakMemory(device) as our_memory:
        ours = seconds(
            lambda: our_update(model, wrapper, {**data, "patches": patches}, options.micro_batch),
            device,
            repeats,
            options.clock,
        )
    print(f"{'ours':>10}: {ours:8.2f} s, peak {our_memory.peak / 1e9:.2f} GB")
    if not options.skip_usual_update:
        if checkpointing:  # transformers' own, which needs training mode
            model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        reference = random_model(options.size, device, dtype, options.vocabulary)
        with PeakMemory(device) as usual_memory:
            usual = seconds(
                lambda: usual_update(model, reference, {**data, "pixels": pixels}, options.micro_batch),
                device,
                repeats,
                options.clock,
            )
        print(f"{'the usual':>10}: {usual:8.2f} s, peak {usual_memory.peak / 1e9:.2f} GB")
        print(f"{'ratio':>10}: {usual / ours:8.2f}x, memory {usual_memory.peak / max(our_memory.peak, 1):.2f}x")
    kind = "allocated in all" if device.type == "cuda" else "above what the models and inputs take"
    print(f"(peak memory: {kind})")


if __name__ == "__main__":
    main()
