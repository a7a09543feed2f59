"""The prompt OpenVLA was trained with, as token ids."""

from dataclasses import dataclass
from typing import Any

import torch as th

# The Llama tokenizer's piece for a blank. Training put a space between the prompt and the first action token.
_BLANK = "▁"


@dataclass(frozen=True)
class Prompts:
    """
    A batch of prompts, shorter ones padded on the left.

    :param input_ids: ``(batch, length)`` int64 on the model's device.
    :param padding: Number of padding ids at the start of each row, known to the host.
    :param offsets: The same numbers on the device, ``(batch, 1)``.
    """

    input_ids: th.Tensor
    padding: tuple[int, ...]
    offsets: th.Tensor

    @property
    def ragged(self) -> bool:
        return any(self.padding)


def prompt_text(instruction: str) -> str:
    """The prompt, lower-cased as upstream, without the blank that :func:`prompt_token_ids` adds."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


def prompt_token_ids(tokenizer: Any, instruction: str) -> list[int]:
    """
    Token ids of the prompt: BOS first, the blank's id (29871 in Llama's vocabulary) last.

    :param tokenizer: A ``tokenizers.Tokenizer`` or a fast tokenizer of transformers.
    :param instruction: What the robot should do.
    :raises ValueError: If the tokenizer has no BOS or blank piece.
    """
    encoded = tokenizer.encode(prompt_text(instruction))
    ids = list(encoded if isinstance(encoded, list) else encoded.ids)
    to_id = getattr(tokenizer, "token_to_id", None) or tokenizer.convert_tokens_to_ids
    bos, blank = to_id("<s>"), to_id(_BLANK)
    if bos is None or blank is None:
        raise ValueError("The tokenizer lacks '<s>' or '▁': it is not Llama's, which OpenVLA was trained with.")
    if ids[:1] != [bos]:
        ids.insert(0, bos)
    if ids[-1] != blank:
        ids.append(blank)
    return ids


def decode_instruction(row: bytes) -> str:
    """Text of an observation's zero-padded UTF-8 bytes; other bytes are a ValueError."""
    text = row.split(b"\x00", 1)[0]
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"The observation's instruction is not zero-padded UTF-8: {text!r} ({error}).") from error
