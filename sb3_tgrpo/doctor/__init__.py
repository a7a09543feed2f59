"""Checks of an installation, a simulator and a checkpoint."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "DoctorContext": "sb3_tgrpo.doctor.finding",
    "Finding": "sb3_tgrpo.doctor.finding",
    "MemoryPlan": "sb3_tgrpo.doctor.finding",
    "run_checks": "sb3_tgrpo.doctor.checks",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
