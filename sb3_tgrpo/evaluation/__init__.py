"""Success rates by LIBERO's protocol, their intervals, and paired comparisons of policies."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "EvalEpisode": "sb3_tgrpo.evaluation.results",
    "Evaluation": "sb3_tgrpo.evaluation.results",
    "Rate": "sb3_tgrpo.evaluation.comparison",
    "evaluate_policy": "sb3_tgrpo.evaluation.protocol",
    "paired_comparison": "sb3_tgrpo.evaluation.comparison",
    "wilson_interval": "sb3_tgrpo.evaluation.comparison",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
