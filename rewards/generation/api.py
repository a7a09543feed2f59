"""
One question to the Messages API, within a deadline, and what came back, whole.

Retries are ours, not the SDK's: it obeys ``retry-after`` without a cap, does not retry errors inside a stream, and does
not notice a stream that just ends. Keys come from the environment (or the caller's client) at call time and are never
stored.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sb3_tgrpo.rewards.facts.errors import RewardError
from sb3_tgrpo.rewards.generation.cost import estimate_cost

MAX_TOKENS = 20_000
"""Below the limit above which the SDK insists on streaming."""
MAX_TOKENS_STREAMED = 64_000
_BACKOFF = 1.0
_BACKOFF_CAP = 60.0


class FatalAPIError(RewardError):
    """Waiting or asking again will not help: wrong key, no credit, refused request."""


class DeadlineError(RewardError):
    """The deadline passed while the API was unavailable."""


@dataclass(frozen=True)
class Answer:
    """
    An answer as it came.

    :param text: all text blocks.
    :param stop_reason: ``end_turn``, ``max_tokens``, ``refusal``, ...; None if a stream ended early.
    :param usage: tokens, with those of cut-off answers to the same question before it.
    :param refusal: category of a refusal.
    :param cost_usd: of these tokens, estimated from list prices; None if the model's price is not known.
    """

    text: str
    stop_reason: str | None
    model: str
    usage: dict[str, int] = field(default_factory=dict)
    request_id: str | None = None
    refusal: str | None = None
    cost_usd: float | None = None
    attempts: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def make_client() -> Any:
    """
    A client with the environment's credentials.

    :raises ImportError: naming the extra, if anthropic is not installed.
    :raises FatalAPIError: if it finds no credentials.
    """
    try:
        import anthropic
    except ImportError as error:
        raise ImportError("Generating rewards needs anthropic >= 2: pip install 'sb3-tgrpo[rewards]'") from error
    try:
        return anthropic.Anthropic(max_retries=0)
    except anthropic.AnthropicError as error:
        raise FatalAPIError(f"no credentials: set ANTHROPIC_API_KEY, or pass client= ({error})") from error


def ask(
    client: Any,
    *,
    model: str,
    system: str,
    messages: list[dict[str, Any]],
    schema: dict[str, Any] | None,
    deadline: float,
    max_tokens: int = MAX_TOKENS,
    stream: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    on_answer: Callable[[Answer], None] | None = None,
) -> Answer:
    """
    Ask until there is a complete answer or the deadline passes. A cut-off answer is asked for once more, with more room.

    :param client: an ``anthropic.Anthropic``.
    :param system: the fixed block, marked for the one-hour cache.
    :param schema: JSON schema of the answer.
    :param deadline: ``time.monotonic()`` value after which nothing new is tried.
    :param stream: ask for a stream from the first attempt on.
    :param on_answer: called with every answer, the cut-off ones too, before anything is made of it.
    :return: the last answer; its tokens and cost include those of a cut-off one before it.
    :raises FatalAPIError: if asking again will not help.
    :raises DeadlineError: if the deadline passes first.
    """
    import anthropic
    import httpx2

    attempts, wait, last = 0, _BACKOFF, "nothing was tried"
    spent: dict[str, int] = {}
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"no answer before the deadline; last error: {last}")
        attempts += 1
        pause: float | None = None
        try:
            answer = _once(client, model, system, messages, schema, max_tokens, stream, left)
            spent = {name: spent.get(name, 0) + count for name, count in answer.usage.items()}
            answer = replace(answer, attempts=attempts, usage=spent, cost_usd=estimate_cost(model, spent))
            if answer.model:
                if on_answer is not None:
                    on_answer(answer)
                if answer.stop_reason in ("max_tokens", None) and max_tokens < MAX_TOKENS_STREAMED:
                    max_tokens, stream, last = MAX_TOKENS_STREAMED, True, f"cut off ({answer.stop_reason})"
                    continue
                return answer
            last = "the answer was not a message"
        except anthropic.APIStatusError as error:
            last = describe(error)
            if not _worth_retrying(error):
                raise FatalAPIError(last) from error
            pause = _retry_after(error)
        except anthropic.APIConnectionError as error:
            last = f"{type(error).__name__}: {error}"
        except (httpx2.HTTPError, anthropic.APIResponseValidationError) as error:
            last = f"{type(error).__name__}: {error}"
        except TypeError as error:
            raise FatalAPIError(f"no credentials: set ANTHROPIC_API_KEY, or pass client= ({error})") from error
        pause = wait if pause is None else pause
        wait = min(2.0 * wait, _BACKOFF_CAP)
        left = deadline - time.monotonic()
        if pause >= left:
            raise DeadlineError(f"no answer before the deadline; last error: {last}")
        sleep(pause)


def _once(
    client: Any,
    model: str,
    system: str,
    messages: list[dict[str, Any]],
    schema: dict[str, Any] | None,
    max_tokens: int,
    stream: bool,
    timeout: float,
) -> Answer:
    request: dict[str, Any] = {
        "model": model,
        "max_tokens": max_tokens,
        "system": [{"type": "text", "text": system, "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "messages": messages,
    }
    if schema is not None:
        request["output_config"] = {"effort": "high", "format": {"type": "json_schema", "schema": schema}}
    client = client.with_options(max_retries=0, timeout=max(1.0, min(timeout, 600.0)))
    if stream:
        with client.messages.stream(**request) as events:
            message = events.get_final_message()
            request_id = events.request_id if hasattr(events, "request_id") else None
    else:
        message = client.messages.create(**request)
        request_id = getattr(message, "_request_id", None)
    text = "".join(block.text for block in (message.content or []) if getattr(block, "type", "") == "text")
    details = getattr(message, "stop_details", None)
    return Answer(
        text=text,
        stop_reason=message.stop_reason,
        model=message.model or "",
        usage=_usage(message.usage),
        request_id=request_id,
        refusal=getattr(details, "category", None) or ("unnamed" if message.stop_reason == "refusal" else None),
    )


def _usage(usage: Any) -> dict[str, int]:
    counted = {}
    for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        counted[name] = int(getattr(usage, name, 0) or 0)
    creation = getattr(usage, "cache_creation", None)
    counted["cache_creation_5m_input_tokens"] = int(getattr(creation, "ephemeral_5m_input_tokens", 0) or 0)
    return counted


def describe(error: Any) -> str:
    """An API error in one line, with the request id that support asks for."""
    text = error.api_message or str(error)
    return f"{type(error).__name__} {error.status_code} {error.type or ''}: {text} (request {error.request_id or 'unknown'})"


def _worth_retrying(error: Any) -> bool:
    import anthropic

    if isinstance(error, anthropic.ContractSpendLimitReachedError | anthropic.EnforcedSpendLimitReachedError):
        return False
    # An error event inside a stream comes with the stream's status, 200: its type says what it is.
    if error.type in ("overloaded_error", "rate_limit_error", "api_error", "timeout_error"):
        return True
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def _retry_after(error: Any) -> float | None:
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return None
