"""Checks of a reward against recorded episodes."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "VerificationReport": "sb3_tgrpo.rewards.verification.report",
    "verify_reward": "sb3_tgrpo.rewards.verification.verify",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
