"""
Write the specs and reports that ship with the package: ``python scripts/write_specs.py [TASK ...]``.

Templates filled with the task's facts and with what its recorded episodes measured, less the rungs that those episodes show
to be out of reach or to pay for nothing. With ``--check``, compares with the files instead and exits with 1 if one differs.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spec_templates import write_spec

from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.rewards.episodes.kinematic import task_traces
from sb3_tgrpo.rewards.episodes.measure import Measurements, measure
from sb3_tgrpo.rewards.episodes.play import play
from sb3_tgrpo.rewards.episodes.traces import Trace
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, available_tasks, data_folder, load_task_facts
from sb3_tgrpo.rewards.program.program import RewardProgram
from sb3_tgrpo.rewards.program.spec import RewardSpec
from sb3_tgrpo.rewards.verification.rungs import SpecPart, idle_parts, missed_rungs
from sb3_tgrpo.rewards.verification.verify import VerificationReport, verify_reward

ORIGIN = "written by hand against the schema, prompt and verifier; no API was reachable"


def fit(spec: RewardSpec, facts: TaskFacts, traces: Sequence[Trace]) -> RewardSpec:
    """
    Drop rungs that some successful episode does not pass, or that all of them have passed when their stage begins.

    :param spec: Spec from a template.
    :param facts: The task.
    :param traces: Its episodes.
    """
    experts = [trace for trace in traces if trace.kind == "expert"]
    while experts:
        program = RewardProgram.from_spec(spec, facts=facts)
        played = [play(program, trace.states) for trace in experts]
        bad = {place[:3] for p in played for place in missed_rungs(spec, facts, p)}
        idle: list[set[SpecPart]] = [set(idle_parts(spec, facts, p)) for p in played]
        bad |= {place[:3] for place in set.intersection(*idle) if place.rung >= 0}
        if not bad:
            break
        document = spec.model_dump(mode="json")
        for track, stage, rung in sorted(bad, reverse=True):
            ladder = document["tracks"][track]["stages"][stage]["ladder"]
            del ladder["rungs"][rung]
            if not ladder["rungs"]:
                document["tracks"][track]["stages"][stage]["ladder"] = None
        spec = RewardSpec.parse(document)
    return spec


def _plain(value: object) -> object:
    """JSON values, NaN as None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def write_task(task: str) -> tuple[RewardSpec, VerificationReport, dict[str, Any]]:
    """
    The spec of a task, its report, and what goes into the report's file.

    :param task: ``"libero_object-3"``.
    """
    facts = load_task_facts(task)
    traces = task_traces(facts)
    measured: Measurements = measure(facts, traces)
    spec = fit(write_spec(facts, measured), facts, traces)
    program = RewardProgram.from_spec(spec, facts=facts)
    report = verify_reward(program, traces, facts=facts, mutation=True)
    others = {}
    for payment in ("per_step", "potential"):
        other = verify_reward(program.with_payment(payment), traces, facts=facts, other_process=False)
        others[payment] = {
            "failed": list(other.failed),
            "margin": round(other.margin, 4),
            "why": {check.id: check.counterexample for check in other.checks if check.hard and check.passed is False},
        }
    document = {
        **report.to_dict(),
        "provenance": {"origin": ORIGIN, "command": f"python scripts/write_specs.py {task}"},
        "episodes": sorted({f"{trace.kind} ({trace.source})" for trace in traces}),
        "measurements": _plain(asdict(measured)),
        "other_payments": others,
    }
    for check in document["checks"]:
        if check["id"] == "V19":  # times differ from run to run; the benchmark has them
            check["numbers"] = {}
    return spec, report, document


def main(argv: list[str] | None = None) -> int:
    """:return: Exit status: 1 if a spec fails a hard check, or with ``--check`` differs from the file."""
    parser = argparse.ArgumentParser(prog="python scripts/write_specs.py", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="such as libero_object-3; default: all that have facts")
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    args = parser.parse_args(argv)
    specs, reports = Path(str(data_folder("specs"))), Path(str(data_folder("reports")))
    status = 0
    for task in args.tasks or available_tasks():
        spec, report, document = write_task(task)
        path = specs / f"{task}.json"
        if args.check:
            same = path.is_file() and RewardSpec.parse(path).sha256 == spec.sha256
            status |= not same
            print(f"{task}: {'same' if same else 'different'}")
            continue
        atomic_write(path, spec.to_json())
        atomic_write(reports / f"{task}.json", json.dumps(document, indent=1) + "\n")
        status |= not report.passed
        score = report["V20"].numbers["score"]
        sources = ", ".join(report.trace_sources)
        failed = " ".join(report.failed) or "passed"
        print(f"{task}: {failed}, margin {report.margin:.2f}, mutation score {score:.2f}, {sources}", flush=True)
        for check in report.checks:
            if check.hard and check.passed is False:
                print(f"  {check.id} {check.counterexample}")
    return status


if __name__ == "__main__":
    sys.exit(main())
