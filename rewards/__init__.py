"""Multi-stage rewards: programs, their generation by an LLM and their verification (arXiv 2506.08440, section IV-A)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "sb3_tgrpo.rewards":
    raise ImportError(
        f"Import this package as sb3_tgrpo.rewards, not as {__name__}: two copies of its classes would not be equal."
    )

if TYPE_CHECKING:
    from sb3_tgrpo.rewards.errors import RewardError
    from sb3_tgrpo.rewards.generate import generate_reward
    from sb3_tgrpo.rewards.program import RewardMemory, RewardProgram, RewardStep, load_reward
    from sb3_tgrpo.rewards.spec import RewardSpec
    from sb3_tgrpo.rewards.task_facts import TaskFacts, load_task_facts
    from sb3_tgrpo.rewards.traces import Trace, load_traces, save_traces
    from sb3_tgrpo.rewards.verify import VerificationReport, verify_reward
    from sb3_tgrpo.rewards.vocabulary import HELPERS, INFO_VOCABULARY, VOCABULARY

_LAZY = {
    "RewardError": "errors",
    "RewardMemory": "program",
    "RewardProgram": "program",
    "RewardSpec": "spec",
    "RewardStep": "program",
    "HELPERS": "vocabulary",
    "INFO_VOCABULARY": "vocabulary",
    "VOCABULARY": "vocabulary",
    "TaskFacts": "task_facts",
    "Trace": "traces",
    "VerificationReport": "verify",
    "generate_reward": "generate",
    "load_reward": "program",
    "load_task_facts": "task_facts",
    "load_traces": "traces",
    "save_traces": "traces",
    "verify_reward": "verify",
}

__all__ = [
    "HELPERS",
    "INFO_VOCABULARY",
    "VOCABULARY",
    "RewardError",
    "RewardMemory",
    "RewardProgram",
    "RewardSpec",
    "RewardStep",
    "TaskFacts",
    "Trace",
    "VerificationReport",
    "generate_reward",
    "load_reward",
    "load_task_facts",
    "load_traces",
    "save_traces",
    "verify_reward",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"sb3_tgrpo.rewards.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
