"""A 4-bit language model through bitsandbytes, for GPUs with 24 GB."""

import torch as th
from torch import nn

from sb3_tgrpo.openvla.model import OpenVLA


def quantize_language_model(model: OpenVLA, device: th.device) -> None:
    """
    Store the linear layers of Llama's blocks as 4-bit NormalFloat (double quantisation) and compute in bfloat16.
    Embeddings, ``lm_head``, norms, vision towers and projector keep their precision.

    :param model: The model on the CPU, changed in place.
    :param device: A CUDA device; the weights are quantised while moving there, one layer at a time.
    :raises ImportError: Without bitsandbytes.
    :raises ValueError: On another device than CUDA.
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
