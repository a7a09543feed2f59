"""
Does a reward do what a reward must? Twenty named checks on recorded episodes, with numbers and the first counter-example.

Checks are played under the program's own payment rule. ``per_step`` cannot pass dominance (V3), separation (V9) or oscillation
(V12) in general; the report has the numbers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_tgrpo.rewards.episodes.traces import Trace
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts
from sb3_tgrpo.rewards.program.compile import SpecCompiler
from sb3_tgrpo.rewards.program.program import RewardProgram
from sb3_tgrpo.rewards.verification.checks import Verifier
from sb3_tgrpo.rewards.verification.mutants import mutation_check
from sb3_tgrpo.rewards.verification.report import OTHER_KINDS, REPORT_ONLY, TITLES, Check, VerificationReport
from sb3_tgrpo.rewards.verification.rungs import completions

__all__ = ["Check", "VerificationReport", "verify_reward"]


def verify_reward(
    program: RewardProgram,
    traces: Sequence[Trace],
    *,
    facts: TaskFacts | None = None,
    mutation: bool = False,
    other_process: bool = True,
    seed: int = 0,
) -> VerificationReport:
    """
    Run the checks V1 to V20 under the program's payment rule.

    :param program: The reward; ``program.with_payment(...)`` for another rule.
    :param traces: Recorded episodes of its task: experts and as many of the other kinds as there are.
    :param facts: Facts of the task; None = the shipped ones.
    :param mutation: Whether to compute the mutation score (V20) too, which takes some seconds.
    :param other_process: V5 also compares with another process under another hash seed.
    :param seed: Seed of the random states and perturbations.
    :raises ValueError: If there are no traces or they are of another task.
    """
    facts = facts or load_task_facts(program.task)
    if not traces:
        raise ValueError("traces is empty: record some or load the shipped ones with load_traces(task).")
    strangers = {trace.task for trace in traces} - {program.task}
    if strangers:
        raise ValueError(f"traces are of {sorted(strangers)}, the reward is for {program.task!r}.")
    verifier = Verifier(program, traces, facts, seed, other_process)
    results = {id_: verifier.check(id_) for id_ in TITLES if id_ != "V20"}
    checks = [Check(id_, TITLES[id_], result[0], id_ not in REPORT_ONLY, *result[1:]) for id_, result in results.items()]
    skipped = Check("V20", TITLES["V20"], None, False, {"why": "not asked for"})
    checks.append(mutation_check(program, traces, facts, seed) if mutation else skipped)
    return VerificationReport(
        program.task,
        program.payment,
        program.spec.sha256 if program.spec else "",
        tuple(sorted({trace.source for trace in traces})),
        tuple(checks),
        _returns(verifier),
        tuple(_stage_rows(verifier)),
    )


def _returns(verifier: Verifier) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for kind in ("expert", *OTHER_KINDS):
        totals = [p.total for t, p in zip(verifier.traces, verifier.played, strict=True) if t.kind == kind]
        if totals:
            rows[kind] = {"n": float(len(totals)), "min": min(totals), "mean": float(np.mean(totals)), "max": max(totals)}
    return rows


def _stage_rows(verifier: Verifier) -> list[dict[str, Any]]:
    spec = verifier.program.spec
    if spec is None or not verifier.experts:
        return []
    _, played = verifier.experts[0]
    compiler = SpecCompiler(spec, verifier.facts)
    start = played.start(verifier.facts)
    rows = []
    for track in spec.tracks:
        done = completions(played, track.name, len(track.stages))
        for j, stage in enumerate(track.stages):
            text = ""
            if stage.ladder is not None:
                variable = compiler.variable(stage.ladder.variable)
                values = [variable(state, start) for state in played.states]
                end = values[done[j]] if done[j] is not None else float("nan")  # type: ignore[index]
                rungs = " ".join(f"{rung.threshold:g}" for rung in stage.ladder.rungs)
                text = f"{stage.ladder.variable.kind} {values[0]:.3f} at reset, {end:.3f} when done, "
                text += f"{min(values):.3f} to {max(values):.3f}, rungs {rungs}"
            entered = 0 if j == 0 else done[j - 1]
            name = f"{track.name}.{stage.name}"
            rows.append({"name": name, "entered": entered, "done": done[j], "points": stage.points, "variable": text})
    return rows
