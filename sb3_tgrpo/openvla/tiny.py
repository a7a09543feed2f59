"""
``"tiny"``: OpenVLA's architecture at 0.1 GFLOP per training sample, for CPUs, tests and teaching.

Two vision towers on 64x64 images, a projector and a Llama, all sizes stated in the configuration and read from it like any
checkpoint's. What differs from upstream besides the sizes: images are average-pooled instead of passed through JPEG and
Lanczos, 2x2 neighbouring patches become one visual token, the vocabulary has 1024 + 64 ids (action ids 768..1023), and the
tokenizer has the words of LIBERO's instructions, the prompt's fixed parts, and bytes for everything else.

The weights are random, from a generator of their own. With the default ``lora="language"`` the random vision side stays
frozen; train the whole model (``lora=None``) before expecting it to see.
"""

import json
import os

import torch as th

from sb3_tgrpo.openvla.config import TINY_IDENTITY, TINY_SEED, OpenVLAConfig, tiny_config
from sb3_tgrpo.openvla.images import Normalization
from sb3_tgrpo.openvla.loading import build_empty, preprocessor_config, save_openvla
from sb3_tgrpo.openvla.model import OpenVLA
from sb3_tgrpo.openvla.prompt import prompt_text

# All words of LIBERO's 130 instructions.
_WORDS = """
akita alphabet and at back basket bbq between black book both bottle bottom bowl box butter cabinet caddy center cheese
chocolate close compartment cookies cream drawer dressing from front frying in inside it juice ketchup layer left microwave
middle milk moka mug next of off on open orange pan pick place plate pot pots pudding push put rack ramekin red right salad
sauce shelf soup stack stove table the them to tomato top tray turn under up white wine wooden yellow
""".split()


def build_tiny() -> OpenVLA:
    """The tiny model, the same at every call; torch's global generator is left alone."""
    half = (0.5, 0.5, 0.5)
    normalization = Normalization(means=(half, half), stds=(half, half))
    model = build_empty(OpenVLAConfig.from_dict(tiny_config(), "the tiny configuration"), normalization)
    generator = th.Generator().manual_seed(TINY_SEED)
    state = {name: _initial(name, tensor, generator) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model.files = {
        "tokenizer.json": tiny_tokenizer_json().encode("utf-8"),
        "preprocessor_config.json": (json.dumps(preprocessor_config(model), indent=2) + "\n").encode(),
    }
    model.identity = TINY_IDENTITY
    return model


def _initial(name: str, tensor: th.Tensor, generator: th.Generator) -> th.Tensor:
    """Initial value of one tensor: unit-scale norms, weights by fan-in, a nearly uniform action distribution."""
    if name.endswith((".bias", "cls_token", "reg_token", "latent")):
        return th.zeros(tensor.shape)
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight", "scale_factor")):
        return th.ones(tensor.shape)
    if name.endswith(("pos_embed", "lm_head.weight")):
        deviation = 0.02
    elif name.endswith("embed_tokens.weight"):
        deviation = 0.2
    else:
        deviation = tensor[0].numel() ** -0.5
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight", "o_proj.weight", "down_proj.weight")):
            deviation *= 0.5
    return th.randn(tensor.shape, generator=generator) * deviation


def tiny_tokenizer_json() -> str:
    """
    A ``tokenizer.json`` in the manner of Llama's: blanks become "▁", BOS is added, unknown text falls back to bytes. The
    prompt's fixed parts are one piece each, so that a LIBERO instruction costs about a dozen tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    before, after = prompt_text("\x00").replace(" ", "▁").split("\x00")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁" + before.rstrip("▁"), after]
    pieces += ["▁" + word for word in _WORDS]
    # Whole pieces are likelier than any way of spelling them out; a byte is a last resort.
    vocabulary = [(piece, -20.0 if i < 259 else (-4.0 if piece == "▁" else -1.0)) for i, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer.to_str(pretty=True)


@th.no_grad()
def subtract_mean_image(model: OpenVLA, mean_pixel_values: th.Tensor) -> None:
    """
    Make the towers see differences to a mean image: their position embeddings take up what the patch embedding makes of it.
    A network this small, trained on a few thousand frames of one scene, learns several times faster that way.

    To be called once, before training.

    :param mean_pixel_values: ``(6, size, size)``, the mean of :meth:`OpenVLA.pixel_values` over the training frames.
    """
    halves = mean_pixel_values.to(model.device, model.dtype).unsqueeze(0).split(3, dim=1)
    for tower, image in zip((model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer), halves, strict=True):
        projected = tower.patch_embed(image)
        tower.pos_embed.sub_(projected - tower.patch_embed.proj.bias)


def save_tiny(folder: str | os.PathLike[str], n_action_bins: int, assets: str | None = None) -> None:
    """
    Write the tiny checkpoint with another number of action bins, 2 to 256. Few bins suit few demonstrations.

    :param assets: Assets that it is to be used with, recorded in its configuration.
    """
    config = tiny_config()
    if not 2 <= n_action_bins <= config["n_action_bins"]:
        raise ValueError(
            f"n_action_bins={n_action_bins} must be 2 to {config['n_action_bins']}, the ids that tiny has for actions."
        )
    ours = {**config["sb3_tgrpo"], **({} if assets is None else {"assets": assets})}
    save_openvla(build_tiny(), folder, config={"n_action_bins": n_action_bins, "sb3_tgrpo": ours})
