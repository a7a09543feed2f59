"""A training run: evaluate, train, evaluate again, report; in a folder that can be continued."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "TrainConfig": "sb3_tgrpo.train.config",
    "run_training": "sb3_tgrpo.train.job",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
