"""Multi-stage rewards: programs, their generation by an LLM and their verification (arXiv 2506.08440, section IV-A)."""

# ruff: noqa: F401

from typing import TYPE_CHECKING

from sb3_tgrpo.lazy import lazy_attributes

if __name__ != "sb3_tgrpo.rewards":
    raise ImportError(f"Import this package as sb3_tgrpo.rewards, not as {__name__}: two copies of a class are not equal.")

if TYPE_CHECKING:  # what type checkers and editors see
    from sb3_tgrpo.rewards.episodes.traces import Trace, load_traces, save_traces
    from sb3_tgrpo.rewards.facts.errors import RewardError
    from sb3_tgrpo.rewards.facts.helpers import HELPERS
    from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts
    from sb3_tgrpo.rewards.facts.vocabulary import INFO_VOCABULARY, VOCABULARY
    from sb3_tgrpo.rewards.generation.generate import generate_reward
    from sb3_tgrpo.rewards.program.program import RewardMemory, RewardProgram, RewardStep, load_reward
    from sb3_tgrpo.rewards.program.spec import RewardSpec
    from sb3_tgrpo.rewards.verification.verify import VerificationReport, verify_reward

_LAZY = {
    "RewardError": "sb3_tgrpo.rewards.facts.errors",
    "RewardMemory": "sb3_tgrpo.rewards.program.program",
    "RewardProgram": "sb3_tgrpo.rewards.program.program",
    "RewardSpec": "sb3_tgrpo.rewards.program.spec",
    "RewardStep": "sb3_tgrpo.rewards.program.program",
    "HELPERS": "sb3_tgrpo.rewards.facts.helpers",
    "INFO_VOCABULARY": "sb3_tgrpo.rewards.facts.vocabulary",
    "VOCABULARY": "sb3_tgrpo.rewards.facts.vocabulary",
    "TaskFacts": "sb3_tgrpo.rewards.facts.task_facts",
    "Trace": "sb3_tgrpo.rewards.episodes.traces",
    "VerificationReport": "sb3_tgrpo.rewards.verification.verify",
    "generate_reward": "sb3_tgrpo.rewards.generation.generate",
    "load_reward": "sb3_tgrpo.rewards.program.program",
    "load_task_facts": "sb3_tgrpo.rewards.facts.task_facts",
    "load_traces": "sb3_tgrpo.rewards.episodes.traces",
    "save_traces": "sb3_tgrpo.rewards.episodes.traces",
    "verify_reward": "sb3_tgrpo.rewards.verification.verify",
}

__all__ = list(_LAZY)
__getattr__ = lazy_attributes(__name__, _LAZY)
