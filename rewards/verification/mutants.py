"""Tests of the tests: how many specs with a planted mistake does verification reject?"""

import copy
import json
from collections.abc import Sequence
from typing import Any

from sb3_tgrpo.rewards.episodes import play as episodes
from sb3_tgrpo.rewards.episodes.traces import Trace
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts
from sb3_tgrpo.rewards.program.program import RewardProgram
from sb3_tgrpo.rewards.program.spec import RewardSpec
from sb3_tgrpo.rewards.verification.checks import Verifier
from sb3_tgrpo.rewards.verification.report import TITLES, Check

_MUTANT_CHECKS = ("V1", "V2", "V3", "V7", "V8", "V10", "V9", "V16", "V17", "V18", "V12", "V13", "V14", "V15", "V11")


def mutation_check(program: RewardProgram, traces: Sequence[Trace], facts: TaskFacts, seed: int) -> Check:
    """V20: share of mutants that some other check rejects; the first survivors as the counter-example."""
    if program.spec is None:
        return Check("V20", TITLES["V20"], None, False, {"why": "a Python program has no fields to mutate"})
    survivors, by, n = [], dict[str, int](), 0
    for name, mutant in mutants(program.spec, facts):
        n += 1
        killer = first_failure(mutant, traces, facts, program.payment, seed)
        if killer is None:
            survivors.append(name)
        else:
            by[killer] = by.get(killer, 0) + 1
    score = 1.0 - len(survivors) / max(n, 1)
    numbers = {"score": score, "mutants": n, "killed by": dict(sorted(by.items()))}
    return Check("V20", TITLES["V20"], score >= 0.95, False, numbers, "; ".join(survivors[:8]))


def first_failure(
    document: dict[str, Any], traces: Sequence[Trace], facts: TaskFacts, payment: Any = "latched", seed: int = 0
) -> str | None:
    """The first check that rejects a spec as JSON, cheapest first; ``schema`` if it does not parse, None if it passes all."""
    try:
        program = RewardProgram.from_spec(document, facts=facts, payment=payment)
    except ValueError:
        return "schema"
    verifier = Verifier(program, traces, facts, seed)
    for check_id in _MUTANT_CHECKS:
        if verifier.check(check_id)[0] is False:
            return check_id
    return None


def mutants(spec: RewardSpec, facts: TaskFacts) -> list[tuple[str, dict[str, Any]]]:
    """Specs with one mistake: a threshold ten times too near or far, a flipped comparison, another object, a dropped stage."""
    base = spec.model_dump(mode="json")
    found: list[tuple[str, dict[str, Any]]] = []

    def mutate(name: str, path: tuple[Any, ...], value: Any) -> None:
        document = copy.deepcopy(base)
        at: Any = document
        for part in path[:-1]:
            at = at[part]
        if value is ...:
            del at[path[-1]]
        else:
            at[path[-1]] = value
        found.append((name, document))

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                where = ".".join(map(str, (*path[-5:], key)))
                if key in ("threshold", "value") and isinstance(value, float) and ("op" in node or key == "threshold"):
                    mutate(f"{where} x 0.1", (*path, key), value * 0.1)
                    mutate(f"{where} x 10", (*path, key), value * 10.0)
                elif key == "op":
                    mutate(f"{where} flipped", (*path, key), "above" if value == "below" else "below")
                walk(value, (*path, key))
        elif isinstance(node, list):
            for i, value in enumerate(node):
                walk(value, (*path, i))

    for i, track in enumerate(base["tracks"]):
        walk(track, ("tracks", i))
        for j in range(len(track["stages"]) - 1):
            mutate(f"{track['name']} without {track['stages'][j]['name']}", ("tracks", i, "stages", j), ...)
    objects = episodes.objects_of_goal(facts)
    spare = [name for name in facts.names("object") if name not in objects]
    text = json.dumps(base)
    for name in objects:
        if spare and f'"{name}"' in text:
            found.append((f"{spare[0]} for {name}", json.loads(text.replace(f'"{name}"', f'"{spare[0]}"'))))
    return found
