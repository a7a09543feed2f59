"""The list of checks of what silently ruins results."""

from collections.abc import Sequence

from sb3_tgrpo.doctor.finding import Check, DoctorContext, Finding, carry_out
from sb3_tgrpo.doctor.installation import INSTALLATION_CHECKS
from sb3_tgrpo.doctor.memory import MEMORY_CHECKS
from sb3_tgrpo.doctor.policy import POLICY_CHECKS
from sb3_tgrpo.doctor.simulator import SIMULATOR_CHECKS

CHECKS: tuple[tuple[str, Check], ...] = (*INSTALLATION_CHECKS, *SIMULATOR_CHECKS, *POLICY_CHECKS, *MEMORY_CHECKS)


def run_checks(context: DoctorContext, checks: Sequence[tuple[str, Check]] | None = None) -> list[Finding]:
    """
    Carry out checks.

    :param context: What is checked.
    :param checks: Names and functions; None = all.
    """
    return [carry_out(name, check, context) for name, check in (CHECKS if checks is None else checks)]
