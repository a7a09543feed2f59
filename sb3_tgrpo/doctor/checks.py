"""The list of checks of what silently ruins results."""

from collections.abc import Sequence

from sb3_tgrpo.doctor.finding import Check, DoctorContext, Finding
from sb3_tgrpo.doctor.installation import INSTALLATION_CHECKS
from sb3_tgrpo.doctor.memory import check_memory
from sb3_tgrpo.doctor.policy import POLICY_CHECKS
from sb3_tgrpo.doctor.simulator import SIMULATOR_CHECKS

CHECKS: tuple[Check, ...] = (*INSTALLATION_CHECKS, *SIMULATOR_CHECKS, *POLICY_CHECKS, check_memory)


def run_checks(context: DoctorContext, checks: Sequence[Check] | None = None) -> list[Finding]:
    """
    Carry out checks.

    :param context: What is checked.
    :param checks: The checks; None = all.
    """
    return [check(context) for check in (CHECKS if checks is None else checks)]
