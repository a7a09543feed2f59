"""What verification says: checks with numbers, as JSON and as a table."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from sb3_tgrpo.rewards.episodes.traces import TraceKind

OTHER_KINDS: tuple[TraceKind, ...] = ("noop", "random", "hover", "oscillate", "wrong-object", "partial")
_TITLES = (
    "names", "payments rise", "dominance", "finite and bounded", "deterministic", "pure", "nothing for nothing",
    "expert replay", "separation", "partial order", "rank agreement", "oscillation", "flicker", "noise", "invariance",
    "wrong object", "goal agreement", "order of sub-goals", "cost", "mutation score",
)  # fmt: skip
TITLES = {f"V{number}": title for number, title in enumerate(_TITLES, start=1)}
REPORT_ONLY = {"V20"}


@dataclass(frozen=True)
class Check:
    """
    One check's outcome.

    :param id: ``V1`` to ``V20``.
    :param title: Its name.
    :param passed: None if it does not apply, for the reason in ``numbers["why"]``.
    :param hard: A failure fails the report.
    :param numbers: Measurements.
    :param counterexample: The first episode and step that fails, or the first problem.
    """

    id: str
    title: str
    passed: bool | None
    hard: bool
    numbers: dict[str, Any] = field(default_factory=dict)
    counterexample: str = ""


@dataclass(frozen=True)
class VerificationReport:
    """
    What verification found; :meth:`to_dict` is the JSON that ships beside a spec, :meth:`table` is for people.

    :param task: The task.
    :param payment: Rule under which episodes were paid.
    :param sha256: Digest of the spec, ``""`` for Python.
    :param trace_sources: Origins of the episodes, see :data:`~sb3_tgrpo.rewards.episodes.traces.TraceSource`.
    :param returns: Per kind of episode: number, least, mean and largest return.
    :param stages: Per stage of the first expert episode: when it was entered and done, its points, its ladder's variable.
    """

    task: str
    payment: str
    sha256: str
    trace_sources: tuple[str, ...]
    checks: tuple[Check, ...]
    returns: dict[str, dict[str, float]]
    stages: tuple[dict[str, Any], ...]

    @property
    def passed(self) -> bool:
        """No hard check failed."""
        return not any(check.hard and check.passed is False for check in self.checks)

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of failed hard checks."""
        return tuple(check.id for check in self.checks if check.hard and check.passed is False)

    @property
    def margin(self) -> float:
        """(least expert return - largest other return) / least expert return; NaN without both."""
        others = [row["max"] for kind, row in self.returns.items() if kind != "expert"]
        least = self.returns.get("expert", {}).get("min", 0.0)
        return (least - max(others)) / least if others and least else float("nan")

    def __getitem__(self, check_id: str) -> Check:
        return next(check for check in self.checks if check.id == check_id)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps({"passed": self.passed, **asdict(self)}))

    def table(self) -> str:
        """The report as text for a terminal, or for the next round of generation."""
        verdict = "passed" if self.passed else f"failed {', '.join(self.failed)}"
        lines = [
            f"{self.task}  {self.payment}  spec {self.sha256[:12] or 'python'}  {verdict}",
            "",
            "stage  entered  done  points  variable",
        ]
        for row in self.stages:
            lines.append(
                f"  {row['name']:<28} {row['entered']!s:>5} {row['done']!s:>5} {row['points']:>6g}  {row['variable']}"
            )
        lines += ["", "returns  n  min  mean  max"]
        for kind, row in self.returns.items():
            lines.append(f"  {kind:<14} {row['n']:>3.0f} {row['min']:>9.3f} {row['mean']:>9.3f} {row['max']:>9.3f}")
        lines += [f"  margin {self.margin:.3f}", ""]
        for check in self.checks:
            mark = "-" if check.passed is None else "ok" if check.passed else "FAIL" if check.hard else "low"
            items = ((key, f"{x:.4g}" if isinstance(x, float) else x) for key, x in check.numbers.items())
            numbers = ", ".join(f"{key} {value}" for key, value in items)
            lines.append(f"  {check.id:<4} {check.title:<20} {mark:<5} {numbers}")
            if check.counterexample:
                lines.append(f"       {check.counterexample}")
        return "\n".join(lines)
