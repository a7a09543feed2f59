"""Multi-stage rewards: programs, their generation by an LLM and their verification (arXiv 2506.08440, section IV-A)."""

if __name__ != "sb3_tgrpo.rewards":
    raise ImportError(
        f"Import this package as sb3_tgrpo.rewards, not as {__name__}: two copies of its classes would not be equal."
    )
