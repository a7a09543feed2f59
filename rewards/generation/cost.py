"""Estimated cost of API calls, from list prices of the date below in US dollars per million tokens. Prices change."""

from collections.abc import Mapping

PRICES_AS_OF = "2026-11-20"
PRICES: dict[str, tuple[float, float]] = {
    "claude-fable-5-1": (10.0, 50.0),
    "claude-opus-5-5": (4.0, 20.0),
    "claude-opus-5": (5.0, 25.0),
    "claude-sonnet-5-5": (2.0, 10.0),
    "claude-haiku-5-5": (0.1, 0.5),
}
"""By model: uncached input tokens, and output tokens, thinking included."""
_CACHE_WRITE_1H, _CACHE_WRITE_5M, _CACHE_READ = 2.0, 1.25, 0.1


def estimate_cost(model: str, usage: Mapping[str, int]) -> float | None:
    """
    Dollars for one call, estimated from list prices.

    :param model: Model id; unknown ids have no estimate.
    :param usage: ``input_tokens``, ``output_tokens``, ``cache_read_input_tokens`` and ``cache_creation_input_tokens``
        (one-hour cache) of the answer.
    :return: None if the model's price is not known.
    """
    if model not in PRICES:
        return None
    input_price, output_price = PRICES[model]
    short = usage.get("cache_creation_5m_input_tokens", 0)
    tokens = (
        usage.get("input_tokens", 0)
        + _CACHE_WRITE_1H * (usage.get("cache_creation_input_tokens", 0) - short)
        + _CACHE_WRITE_5M * short
        + _CACHE_READ * usage.get("cache_read_input_tokens", 0)
    )
    return (tokens * input_price + usage.get("output_tokens", 0) * output_price) / 1e6
