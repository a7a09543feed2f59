"""
One question to the Messages API, within a deadline, and what came back, whole.

Retries are ours, not the SDK's: it obeys ``retry-after`` without a cap, does not retry errors inside a stream, does not
notice a stream that just ends, and returns whatever came with status 200 as if it were a message. Keys come from the
environment (or the caller's client) at call time and are never stored.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from sb3_tgrpo.rewards.facts.errors import RewardError
from sb3_tgrpo.rewards.generation.cost import estimate_cost

MAX_TOKENS = 20_000
"""Below the limit above which the SDK insists on streaming."""
MAX_TOKENS_STREAMED = 64_000
_BACKOFF = 1.0
_BACKOFF_CAP = 60.0
_MOST_MALFORMED = 5


class FatalAPIError(RewardError):
    """Waiting or asking again will not help: wrong key, no credit, refused request."""


class DeadlineError(RewardError):
    """The deadline passed while the API was unavailable."""


@dataclass(frozen=True)
class Answer:
    """
    An answer as it came.

    :param text: All text blocks.
    :param stop_reason: ``end_turn``, ``max_tokens``, ``refusal``, ...; None if a stream ended early.
    :param usage: Tokens, cut-off answers to the same question before it included.
    :param refusal: Category of a refusal.
    :param cost_usd: Cost of these tokens, estimated from list prices; None if the model's price is not known.
    """

    text: str
    stop_reason: str | None
    model: str
    usage: dict[str, int] = field(default_factory=dict)
    request_id: str | None = None
    refusal: str | None = None
    cost_usd: float | None = None
    attempts: int = 1


def make_client() -> Any:
    """
    A client with the environment's credentials.

    :raises ImportError: If anthropic is not installed, naming the extra.
    :raises FatalAPIError: If it finds no credentials.
    """
    try:
        import anthropic
    except ImportError as error:
        raise ImportError("Generating rewards needs anthropic >= 2: pip install 'sb3-tgrpo[rewards]'") from error
    try:
        return anthropic.Anthropic(max_retries=0)
    except anthropic.AnthropicError as error:
        raise FatalAPIError(f"no credentials: set ANTHROPIC_API_KEY, or pass client= ({error})") from error


@dataclass(frozen=True)
class Question:
    """
    What is asked.

    :param model: Model id.
    :param system: Fixed block, marked for the one-hour cache.
    :param messages: Conversation.
    :param schema: JSON schema of the answer, or None.
    """

    model: str
    system: str
    messages: list[dict[str, Any]]
    schema: dict[str, Any] | None = None


class _MalformedError(Exception):
    """What came with status 200 is no message of the API."""


def ask(
    client: Any,
    question: Question,
    *,
    deadline: float,
    stream: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    on_answer: Callable[[Answer], None] = lambda answer: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Answer:
    """
    Ask until there is a complete answer or the deadline passes. A cut-off answer is asked for once more, with more room.

    Pauses grow whatever the server asks for, and are longer if it asks for more.

    :param client: An ``anthropic.Anthropic``.
    :param question: Question.
    :param deadline: ``time.monotonic()`` value after which nothing new is tried.
    :param stream: Whether to ask for a stream from the first attempt on.
    :param sleep: Function that waits; tests pass their own.
    :param on_answer: Function that gets every answer, the cut-off ones too, before anything is made of it.
    :param tell: Function that gets a line for each retry: what went wrong, and the pause.
    :return: The last answer; its tokens and cost include a cut-off one before it.
    :raises FatalAPIError: If asking again will not help.
    :raises DeadlineError: If the deadline passes first.
    """
    import anthropic
    import httpx2

    attempts, malformed, wait, last, max_tokens = 0, 0, _BACKOFF, "nothing was tried", MAX_TOKENS
    spent: dict[str, int] = {}
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"no answer before the deadline; last error: {last}")
        attempts += 1
        wanted = 0.0
        try:
            answer = _once(client, question, max_tokens, stream, left)
            spent = {name: spent.get(name, 0) + count for name, count in answer.usage.items()}
            answer = replace(answer, attempts=attempts, usage=spent, cost_usd=estimate_cost(question.model, spent))
            on_answer(answer)
            if answer.stop_reason not in ("max_tokens", None) or max_tokens == MAX_TOKENS_STREAMED:
                return answer
            max_tokens, stream, last = MAX_TOKENS_STREAMED, True, f"the answer was cut off: {cut_off(answer.stop_reason)}"
            tell(f"{last}; asking again, with room for {max_tokens} tokens")
            continue
        except anthropic.APIStatusError as error:
            last = describe(error)
            if not _worth_retrying(error):
                raise FatalAPIError(last) from error
            wanted = _retry_after(error)
        except (anthropic.APIConnectionError, httpx2.HTTPError) as error:
            last = f"{type(error).__name__}: {error}"
        except (anthropic.APIResponseValidationError, _MalformedError) as error:
            malformed += 1
            last = f"the answer is no message of the API ({error})"
            if malformed == _MOST_MALFORMED:
                raise FatalAPIError(f"{last}; {malformed} such answers: is the address of the API right?") from error
        pause = max(wait, wanted)
        wait = min(2.0 * wait, _BACKOFF_CAP)
        if pause >= deadline - time.monotonic():
            raise DeadlineError(f"no answer before the deadline; last error: {last}")
        tell(f"{last}; asking again in {pause:.0f} s (attempt {attempts + 1})")
        sleep(pause)


def cut_off(stop_reason: str | None) -> str:
    """Why an answer is not whole, in words."""
    named = {"max_tokens": "it reached the limit of its tokens", None: "the stream ended before it did"}
    return named.get(stop_reason, f"stop reason {stop_reason}")


def _once(client: Any, question: Question, max_tokens: int, stream: bool, timeout: float) -> Answer:
    import anthropic
    import httpx2

    request: dict[str, Any] = {
        "model": question.model,
        "max_tokens": max_tokens,
        "system": [{"type": "text", "text": question.system, "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "messages": question.messages,
    }
    if question.schema is not None:
        request["output_config"] = {"effort": "high", "format": {"type": "json_schema", "schema": question.schema}}
    client = client.with_options(max_retries=0, timeout=max(1.0, min(timeout, 600.0)))
    try:
        if stream:
            with client.messages.stream(**request) as events:
                message = events.get_final_message()
                return _to_answer(message, getattr(events, "request_id", None))
        message = client.messages.create(**request)
        return _to_answer(message, getattr(message, "_request_id", None))
    except (anthropic.APIError, httpx2.HTTPError):
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, TypeError) and "authentication" in str(error):  # raised by the SDK without a key
            raise FatalAPIError(f"no credentials: set ANTHROPIC_API_KEY, or pass client= ({error})") from error
        # The SDK does not check what it receives: a proxy's page or a cut-off body fails somewhere in it, or in _to_answer.
        raise _MalformedError(f"{type(error).__name__}: {error}".strip(": ")) from error


def _to_answer(message: Any, request_id: str | None) -> Answer:
    if not isinstance(message.model, str) or not message.model:
        raise ValueError("it names no model")
    if not isinstance(message.content, list):
        raise ValueError(f"its content is {message.content!r}")
    details = getattr(message, "stop_details", None)
    return Answer(
        text="".join(block.text for block in message.content if getattr(block, "type", "") == "text"),
        stop_reason=message.stop_reason,
        model=message.model,
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
    # An error event inside a stream comes with the stream's status, 200: only its type is of use.
    if error.type in ("overloaded_error", "rate_limit_error", "api_error", "timeout_error"):
        return True
    return error.status_code in (408, 409, 429) or error.status_code >= 500


def _retry_after(error: Any) -> float:
    """Seconds that the server asks to wait, 0 if it names none."""
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return seconds
    return 0.0
