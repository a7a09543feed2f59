"""OpenVLA: two vision towers, a projector and Llama, with batched cached decoding of action tokens and nothing else."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

try:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
except ImportError as error:
    raise ImportError('OpenVLA needs transformers, peft and more: pip install "sb3-tgrpo[openvla]"') from error

from sb3_tgrpo.openvla.actions import (
    action_dim,
    bin_tokens,
    bin_values,
    check_statistics,
    normalise,
    resolve_unnorm_key,
    unnormalise,
)
from sb3_tgrpo.openvla.config import OpenVLAConfig
from sb3_tgrpo.openvla.cuda_graph import GraphedGeneration
from sb3_tgrpo.openvla.images import Normalization, preprocess_libero_image, rotate_and_area_resize, to_pixel_values
from sb3_tgrpo.openvla.prompt import Prompts
from sb3_tgrpo.openvla.vit import Projector, VisionBackbone

DEFAULT_ACTION_DIM = 7


class KeyValueCache:
    """
    Keys and values in buffers of fixed size at positions the host knows: nothing grows, nothing synchronises, and a CUDA
    graph can record the whole generation.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0
        self.buffers: dict[int, tuple[th.Tensor, th.Tensor]] = {}

    def update(
        self, key: th.Tensor, value: th.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[th.Tensor, th.Tensor]:
        """Called by each attention layer: store the new keys and values, return all those so far."""
        batch, heads, new, width = key.shape
        if layer_idx not in self.buffers:
            shape = (batch, heads, self.max_length, width)
            self.buffers[layer_idx] = key.new_empty(shape), value.new_empty(shape)
        keys, values = self.buffers[layer_idx]
        end = self.length + new
        keys[:, :, self.length : end] = key
        values[:, :, self.length : end] = value
        return keys[:, :, :end], values[:, :, :end]


class OpenVLA(nn.Module):
    """
    The model behind an OpenVLA checkpoint; parameter names are the checkpoint's. Build it with
    :func:`~sb3_tgrpo.openvla.checkpoint.load_openvla`.

    :param config: Sizes and statistics, read from ``config.json``.
    :param normalization: Image statistics, read from ``preprocessor_config.json``.
    """

    def __init__(self, config: OpenVLAConfig, normalization: Normalization | None = None) -> None:
        super().__init__()
        llama_config = LlamaConfig(**config.text_config)
        llama_config._attn_implementation = "sdpa"
        self.config = config
        self.vision_backbone = VisionBackbone(config.towers, config.patch_merge)
        self.projector = Projector(config.vision_dim, llama_config.hidden_size, config.projector_hidden)
        self.language_model = LlamaForCausalLM(llama_config)
        self.normalization = normalization or Normalization()
        self.norm_stats: dict[str, Any] = config.norm_stats
        self.gradient_checkpointing = False
        # Set when float32 adapters sit on a base of lower precision: their products then run in the base's precision.
        self.autocast_language = False
        self.autocast_vision = False
        self.is_loaded_in_4bit = False  # the name PEFT looks for
        self.files: dict[str, bytes] = {}
        self.identity = ""
        self.identity_by_ends = ""
        self._graphs = GraphedGeneration(self._generate, self.adapter_state)

    # ------------------------------------------------------------------ properties

    @property
    def device(self) -> th.device:
        return self.language_model.model.embed_tokens.weight.device

    @property
    def dtype(self) -> th.dtype:
        return self.language_model.model.embed_tokens.weight.dtype

    @property
    def hidden_size(self) -> int:
        return int(self.language_model.config.hidden_size)

    @property
    def vision_is_frozen(self) -> bool:
        """Whether training can't change an image's embedding."""
        parts = (self.vision_backbone, self.projector)
        return not any(parameter.requires_grad for part in parts for parameter in part.parameters())

    @property
    def action_rows(self) -> slice:
        """Ids of the action tokens (31744..31999 upstream)."""
        return slice(self.config.action_vocab_begin, self.config.action_vocab_end)

    @cached_property
    def tokenizer(self) -> Any:
        """
        The checkpoint's ``tokenizers.Tokenizer``.

        :raises ValueError: If the checkpoint came without ``tokenizer.json``.
        """
        from tokenizers import Tokenizer

        if "tokenizer.json" not in self.files:
            raise ValueError("The checkpoint has no tokenizer.json: copy the one of openvla/openvla-7b into its folder.")
        return Tokenizer.from_str(self.files["tokenizer.json"].decode("utf-8"))

    def _apply(self, fn: Any, recurse: bool = True) -> "OpenVLA":
        super()._apply(fn, recurse)
        # `.to(bfloat16)` would round the rotary frequencies too: cosines off by up to 0.36 within 300 positions.
        rotary = self.language_model.model.rotary_emb
        if rotary.inv_freq.dtype != th.float32:
            self.reset_rotary(rotary.inv_freq.device)
        self._graphs.clear()
        return self

    def reset_rotary(self, device: th.device) -> None:
        """Compute the rotary frequencies anew in float32; no checkpoint stores them."""
        self.language_model.model.rotary_emb = LlamaRotaryEmbedding(self.language_model.config).to(device)

    # ------------------------------------------------------------------ images and prompts

    def preprocess(self, images: th.Tensor) -> th.Tensor:
        """
        The checkpoint's image recipe up to uint8.

        :param images: ``(batch, height, width, 3)`` uint8 simulator frames.
        :return: ``(batch, size, size, 3)`` uint8.
        """
        if self.config.pipeline == "libero":
            return preprocess_libero_image(images)
        return rotate_and_area_resize(images, self.config.image_size)

    def pixel_values(self, preprocessed: th.Tensor) -> th.Tensor:
        """Normalised ``(batch, 6, size, size)`` in the model's dtype from :meth:`preprocess`'s result."""
        return to_pixel_values(preprocessed, self.normalization).to(self.dtype)

    def prompts(self, input_ids: th.Tensor | list[list[int]]) -> Prompts:
        """
        Check prompts and put them on the device.

        :param input_ids: ``(batch, length)``, or lists that may differ in length (they are padded on the left; a tensor
            may already be, with the pad id).
        :raises ValueError: If a prompt is empty or longer than the model's context.
        """
        pad = int(self.config.text_config["pad_token_id"])
        if isinstance(input_ids, list):
            longest = max((len(row) for row in input_ids), default=0)
            input_ids = th.tensor([[pad] * (longest - len(row)) + row for row in input_ids], dtype=th.int64)
        if input_ids.ndim != 2 or input_ids.shape[1] == 0:
            raise ValueError(f"input_ids must be (batch, length) with at least one id, got shape {tuple(input_ids.shape)}.")
        room = int(self.config.text_config["max_position_embeddings"]) - self.config.n_visual_tokens - DEFAULT_ACTION_DIM
        if input_ids.shape[1] > room:
            raise ValueError(
                f"The instruction is too long: {input_ids.shape[1]} prompt tokens, the model has room for {room}. Shorten it."
            )
        offsets = (input_ids == pad).to(th.int64).cumprod(1).sum(1, keepdim=True)
        return Prompts(input_ids.to(self.device), tuple(offsets.flatten().tolist()), offsets.to(self.device))

    def project(self, pixel_values: th.Tensor) -> th.Tensor:
        """
        Images as the language model sees them.

        :param pixel_values: ``(batch, 6, size, size)``; cast to the model's dtype.
        :return: ``(batch, visual tokens, hidden)``.
        :raises ValueError: If the images have another size.
        """
        size = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (6, size, size):
            raise ValueError(
                f"pixel_values must be (batch, 6, {size}, {size}), got {tuple(pixel_values.shape)}. "
                "Make them with preprocess_libero_image and to_pixel_values."
            )
        with self._autocast(self.autocast_vision):
            return self.projector(self.vision_backbone(pixel_values.to(self.device, self.dtype))).to(self.dtype)

    # ------------------------------------------------------------------ the language model

    def _autocast(self, enabled: bool) -> AbstractContextManager:
        # Without the weight cache: inside a CUDA graph it would freeze the adapters at their first values.
        return th.autocast(self.device.type, self.dtype, cache_enabled=False) if enabled else nullcontext()

    def _embed(self, patches: th.Tensor, prompts: Prompts, tokens: th.Tensor | None = None) -> th.Tensor:
        """Input embeddings: padding, BOS, patches, the rest of the prompt, and action tokens already chosen."""
        text = self.language_model.model.embed_tokens(prompts.input_ids)
        patches = patches.to(text.dtype)
        if prompts.ragged:
            rows = [th.cat([t[: p + 1], v, t[p + 1 :]]) for t, v, p in zip(text, patches, prompts.padding, strict=True)]
            sequence = th.stack(rows)
        else:
            sequence = th.cat([text[:, :1], patches, text[:, 1:]], dim=1)
        if tokens is None or tokens.shape[1] == 0:
            return sequence
        return th.cat([sequence, self.language_model.model.embed_tokens(tokens)], dim=1)

    def _positions_and_mask(self, prompts: Prompts, length: int) -> tuple[th.Tensor, th.Tensor | None]:
        """Contiguous positions from each row's BOS, and the attention mask, None where plain causal attention is right."""
        positions = th.arange(length, device=self.device).unsqueeze(0)
        if not prompts.ragged:
            return positions, None
        valid = positions >= prompts.offsets
        causal = th.ones(length, length, dtype=th.bool, device=self.device).tril()
        # Padding attends to itself: a row without any key would be NaN and spread through the values.
        mask = (causal & valid[:, None, None, :]) | th.eye(length, dtype=th.bool, device=self.device)
        return (positions - prompts.offsets).clamp_min_(0), mask

    def _decode(
        self, hidden: th.Tensor, positions: th.Tensor, mask: th.Tensor | None, cache: KeyValueCache | None = None
    ) -> th.Tensor:
        """Llama's layers without its final norm; with ``cache``, its attention covers the cached positions too."""
        llama = self.language_model.model
        rope = llama.rotary_emb(hidden, position_ids=positions)
        with self._autocast(self.autocast_language):
            for layer in llama.layers:
                if self.gradient_checkpointing and th.is_grad_enabled():
                    hidden = checkpoint(layer, hidden, attention_mask=mask, position_embeddings=rope, use_reentrant=False)
                else:
                    hidden = layer(hidden, attention_mask=mask, position_embeddings=rope, past_key_values=cache)
        if cache is not None:
            cache.length += hidden.shape[1]
        return hidden

    def action_head(self, hidden: th.Tensor) -> th.Tensor:
        """Float32 logits ``(..., n_bins)`` of the action ids alone, after the final norm; with an adapter on ``lm_head``."""
        head = self.language_model.lm_head
        if hasattr(head, "lora_A") and head.disable_adapters and head.merged:
            head.unmerge()  # as PEFT's own forward does: off means off
        base = head.base_layer if hasattr(head, "base_layer") else head
        hidden = hidden.float()
        logits = F.linear(hidden, base.weight[self.action_rows].float())
        if hasattr(head, "lora_A") and not head.disable_adapters and not head.merged:
            for name in head.active_adapters:
                low_rank = F.linear(hidden, head.lora_A[name].weight.float())
                logits = logits + F.linear(low_rank, head.lora_B[name].weight[self.action_rows].float()) * head.scaling[name]
        return logits

    def prompt_last_logits(self, pixel_values: th.Tensor, input_ids: th.Tensor | list[list[int]]) -> th.Tensor:
        """Float32 logits ``(batch, vocabulary)`` after the prompt, for comparison with other implementations."""
        hidden = self.prompt_hidden(self.project(pixel_values), self.prompts(input_ids))
        with self._autocast(self.autocast_language):
            return self.language_model.lm_head(hidden).float()

    def action_hidden(self, patches: th.Tensor, prompts: Prompts, tokens: th.Tensor) -> th.Tensor:
        """``(batch, K, hidden)`` of one teacher-forced pass: what the head reads to predict each of the action ids."""
        embeds = self._embed(patches, prompts, tokens[:, :-1])
        hidden = self._decode(embeds, *self._positions_and_mask(prompts, embeds.shape[1]))
        return self.language_model.model.norm(hidden[:, -tokens.shape[1] :])

    def prompt_hidden(self, patches: th.Tensor, prompts: Prompts) -> th.Tensor:
        """``(batch, hidden)`` after the prompt: what the first action token is predicted from."""
        embeds = self._embed(patches, prompts)
        hidden = self._decode(embeds, *self._positions_and_mask(prompts, embeds.shape[1]))
        return self.language_model.model.norm(hidden[:, -1])

    def action_logits(self, pixel_values: th.Tensor, input_ids: th.Tensor | list[list[int]], tokens: th.Tensor) -> th.Tensor:
        """
        Teacher-forced logits of the action ids, in one pass and with gradient.

        :param pixel_values: ``(batch, 6, size, size)``.
        :param input_ids: Prompts, see :meth:`prompts`.
        :param tokens: ``(batch, K)`` action ids.
        :return: ``(batch, K, n_bins)`` float32, ids ascending (31744..31999 upstream).
        """
        tokens = tokens.to(self.device, th.int64)
        return self.action_head(self.action_hidden(self.project(pixel_values), self.prompts(input_ids), tokens))

    # ------------------------------------------------------------------ generation

    def adapter_state(self) -> tuple | None:
        """Whether the language model's adapters are switched off, which are merged, which are active; None without any."""
        layer = next((module for module in self.language_model.modules() if hasattr(module, "lora_A")), None)
        if layer is None:
            return None
        return layer.disable_adapters, tuple(layer.merged_adapters), tuple(layer.active_adapters)  # type: ignore[arg-type]

    def _generate(
        self, patches: th.Tensor, prompts: Prompts, noise: th.Tensor, scale: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Prefill once, then one cached step per further token. Free of host synchronisation.

        :param noise: ``(batch, K, n_bins)`` Gumbel noise, zeros for greedy.
        :param scale: Scalar tensor, one over the temperature.
        :return: Tokens ``(batch, K)``, log-probabilities ``(batch, K)``, hidden state after the prompt ``(batch, hidden)``.
        """
        llama = self.language_model.model
        n_tokens = noise.shape[1]
        embeds = self._embed(patches, prompts)
        length = embeds.shape[1]
        cache = KeyValueCache(length + n_tokens - 1)
        positions, mask = self._positions_and_mask(prompts, length + n_tokens - 1)
        prefill_mask = None if mask is None else mask[..., :length, :length]
        hidden = llama.norm(self._decode(embeds, positions[:, :length], prefill_mask, cache)[:, -1])
        prompt_hidden = hidden
        tokens, log_probs = [], []
        for k in range(n_tokens):
            log_prob = F.log_softmax(self.action_head(hidden) * scale, dim=-1)
            # Gumbel-max: the largest of log-probability plus noise is an exact sample, and needs no host round trip.
            choice = (log_prob + noise[:, k]).argmax(dim=-1, keepdim=True)
            tokens.append(choice + self.config.action_vocab_begin)
            log_probs.append(log_prob.gather(1, choice))
            if k + 1 < n_tokens:
                at = length + k
                step_mask = None if mask is None else mask[..., at : at + 1, : at + 1]
                step = llama.embed_tokens(tokens[-1])
                hidden = llama.norm(self._decode(step, positions[:, at : at + 1], step_mask, cache)[:, -1])
        return th.cat(tokens, dim=1), th.cat(log_probs, dim=1), prompt_hidden

    @th.no_grad()
    def generate_from_patches(
        self,
        patches: th.Tensor,
        prompts: Prompts,
        temperature: float = 0.0,
        generator: th.Generator | Sequence[th.Generator] | None = None,
        n_tokens: int = DEFAULT_ACTION_DIM,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :meth:`generate_action_tokens` for images already projected.

        :param generator: One for the batch, or one per row (each then draws what it would draw alone).
        :return: Tokens, log-probabilities, and the hidden state after the prompt ``(batch, hidden)``.
        """
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0 (0 = greedy), got {temperature}.")
        shape = (len(patches), n_tokens, self.config.n_action_bins)
        if temperature > 0:
            # Float32 exponentials can be 0 once in 2**24 draws; the smallest normal number keeps the noise finite.
            draws = _exponential(shape, generator, self.device)
            noise = -draws.clamp_min_(th.finfo(th.float32).tiny).log_().to(self.device)
            scale = th.tensor(1.0 / temperature, device=self.device)
        else:
            noise, scale = th.zeros(shape, device=self.device), th.ones((), device=self.device)
        if self.device.type == "cuda":
            return self._graphs(patches, prompts, noise, scale)
        return self._generate(patches, prompts, noise, scale)

    def generate_action_tokens(
        self,
        pixel_values: th.Tensor,
        input_ids: th.Tensor | list[list[int]],
        temperature: float = 0.0,
        generator: th.Generator | None = None,
        n_tokens: int = DEFAULT_ACTION_DIM,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Choose one action per sample, token by token, among the action ids only.

        :param pixel_values: ``(batch, 6, size, size)``.
        :param input_ids: Prompts, see :meth:`prompts`.
        :param temperature: Sampling temperature; 0 is greedy.
        :param generator: Source of randomness; None = torch's global one.
        :param n_tokens: Tokens per action.
        :return: Tokens ``(batch, K)`` int64 and their float32 log-probabilities over the action ids at the sampling
            temperature (greedy: at temperature 1).
        """
        with th.no_grad():
            patches = self.project(pixel_values)
        return self.generate_from_patches(patches, self.prompts(input_ids), temperature, generator, n_tokens)[:2]

    # ------------------------------------------------------------------ actions

    def statistics(self, unnorm_key: str | None = None) -> dict[str, Any]:
        """
        One dataset's action statistics.

        :raises ValueError: If the name is unknown (all names are listed) or None and there are several, or they are damaged.
        """
        name = resolve_unnorm_key(list(self.norm_stats), unnorm_key)
        check_statistics({name: self.norm_stats[name]}, "The checkpoint's action statistics")
        return self.norm_stats[name]

    def decode_actions(self, tokens: th.Tensor | np.ndarray, unnorm_key: str | None = None) -> np.ndarray:
        """
        Actions as upstream's ``predict_action`` returns them (before LIBERO's gripper step).

        :param tokens: ``(batch, K)`` ids.
        :param unnorm_key: Dataset whose statistics scale the action.
        :return: ``(batch, K)`` float64.
        """
        ids = tokens.cpu().numpy() if isinstance(tokens, th.Tensor) else np.asarray(tokens)
        statistics = self.statistics(unnorm_key)
        if ids.shape[-1] != action_dim(statistics):
            raise ValueError(f"tokens has {ids.shape[-1]} per action, {unnorm_key!r} describes {action_dim(statistics)}.")
        return unnormalise(bin_values(ids, self.config.action_vocab_end, self.config.n_action_bins), statistics)

    def encode_actions(self, actions: np.ndarray, unnorm_key: str | None = None) -> np.ndarray:
        """
        Token ids of actions, as upstream encodes training data.

        :param actions: ``(..., K)`` in the dataset's units, gripper in OpenVLA's convention.
        :return: ``(..., K)`` int64.
        """
        values = normalise(np.asarray(actions, dtype=np.float64), self.statistics(unnorm_key))
        return bin_tokens(values, self.config.action_vocab_end, self.config.n_action_bins)


def _exponential(
    shape: tuple[int, ...], generator: th.Generator | Sequence[th.Generator] | None, device: th.device
) -> th.Tensor:
    """Standard exponential draws from the global generator, one generator, or one per row."""
    if generator is None or isinstance(generator, th.Generator):
        return th.empty(shape, device=device if generator is None else generator.device).exponential_(generator=generator)
    rows = [th.empty(shape[1:], device=each.device).exponential_(generator=each) for each in generator]
    return th.stack(rows)
