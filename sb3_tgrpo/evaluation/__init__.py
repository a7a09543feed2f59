"""Success rates by LIBERO's protocol, their intervals, and paired comparisons of policies."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "EvalEpisode": "sb3_tgrpo.evaluation.results",
    "Evaluation": "sb3_tgrpo.evaluation.results",
    "Execution": "sb3_tgrpo.evaluation.protocol",
    "Protocol": "sb3_tgrpo.evaluation.protocol",
    "Rate": "sb3_tgrpo.evaluation.statistics",
    "evaluate_policy": "sb3_tgrpo.evaluation.evaluate",
    "paired_comparison": "sb3_tgrpo.evaluation.comparison",
    "sampled": "sb3_tgrpo.evaluation.adapters",
    "wilson_interval": "sb3_tgrpo.evaluation.statistics",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
