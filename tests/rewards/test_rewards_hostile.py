"""Hostile programs and specs in sub-processes that would notice, and mutation fuzzing of accepted programs."""

import ast
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rewards_fixtures import make_facts, make_spec, make_state

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers" / "hostile"))

import programs
import specs

from sb3_tgrpo.rewards import RewardError, RewardProgram

RUNNER = Path(__file__).parents[1] / "helpers" / "hostile" / "runner.py"


def run(engine: str, items: list[tuple[str, Any]], folder: Path, timeout: float = 120.0) -> dict[str, dict[str, Any]]:
    """Verdicts by name; a child that dies or hangs convicts the document that it was working on."""
    canary = folder / "canary.txt"
    canary.write_text("planted")
    request = folder / "request.pickle"
    request.write_bytes(pickle.dumps((engine, items, str(canary))))
    environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "SECRET": "planted"}
    environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    files = set(folder.iterdir())
    try:
        done = subprocess.run(
            [sys.executable, str(RUNNER), str(request)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=folder,
            env=environment,
        )
        output, ended = done.stdout, f"child ended with {done.returncode}: {done.stderr[-300:]}"
    except subprocess.TimeoutExpired as error:
        output, ended = (error.stdout or b"").decode(), "child hung"
    verdicts: dict[str, dict[str, Any]] = {}
    started, finished = None, False
    for line in output.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            verdicts[f"output after {started}"] = {"verdict": f"printed {line[:80]}", "seconds": 0.0}
            continue
        started = entry.get("started", started)
        finished = finished or "finished" in entry
        if "verdict" in entry:
            verdicts[entry["name"]] = entry
        if "heavy" in entry:
            assert not entry["heavy"], "the reward package must stay light"
    if not finished:
        verdicts[str(started)] = {"verdict": ended, "seconds": timeout}
    assert canary.read_text() == "planted"
    assert set(folder.iterdir()) == files, "a document left a file behind"
    return verdicts


@pytest.mark.parametrize("family", [name for name in programs.FAMILIES if name != "resources"])
def test_hostile_programs_are_refused_or_harmless(family: str, tmp_path: Path) -> None:
    items = [(f"{family} {i}", source) for i, source in enumerate(programs.FAMILIES[family])]
    verdicts = run("python", items, tmp_path)
    assert {name: v["verdict"] for name, v in verdicts.items() if v["verdict"] not in ("refused", "harmless")} == {}
    assert set(verdicts) == {name for name, _ in items}
    harmless = {items[[n for n, _ in items].index(name)][1] for name, v in verdicts.items() if v["verdict"] == "harmless"}
    if family in ("introspection", "formatting", "frames", "numpy", "unicode"):
        assert harmless == set(), "these reach for something: they must stop at compile time"


def test_resource_bombs_stop_at_compile_time(tmp_path: Path) -> None:
    """In small groups, so that a hang or a kill is one failure and not the end of the suite."""
    items = [(f"resources {i}", source) for i, source in enumerate(programs.RESOURCES)]
    for start in range(0, len(items), 6):
        group = items[start : start + 6]
        verdicts = run("python", group, tmp_path)
        assert {name: v["verdict"] for name, v in verdicts.items() if v["verdict"] not in ("refused", "harmless")} == {}
        assert set(verdicts) == {name for name, _ in group}
        for name, source in group:
            if any(
                word in source
                for word in ("while", "for ", "** 9", "<<", "range", "'a' *", "compute_reward(state, info)\n    ret")
            ):
                assert verdicts[name]["verdict"] == "refused", source


def test_hostile_specs_are_refused_or_harmless(tmp_path: Path) -> None:
    documents = specs.documents(make_spec())
    unpicklable = {"object as value", "a class", "circular"}
    items = [(name, document) for name, document in documents.items() if name not in unpicklable]
    verdicts = run("spec", items, tmp_path)
    assert {name: v["verdict"] for name, v in verdicts.items() if v["verdict"] not in ("refused", "harmless")} == {}
    assert set(verdicts) == {name for name, _ in items}
    assert {name for name, v in verdicts.items() if v["verdict"] == "harmless"} == {"negative zero", "tiny points"} - {
        "tiny points"
    }
    for name in unpicklable:
        with pytest.raises(RewardError):
            RewardProgram.from_spec(documents[name], facts=make_facts())


def test_there_are_enough_of_them() -> None:
    sources = [source for family in programs.FAMILIES.values() for source in family]
    assert len(set(sources)) >= 150
    assert len(specs.documents(make_spec())) >= 30


def test_the_harness_notices_harm(tmp_path: Path) -> None:
    """The same programs under exec with empty builtins: if nothing were noticed there, silence above would mean nothing."""
    chosen = {
        "globals": programs.result("distance.__globals__['SECRET']"),
        "file": programs.body("distance.__globals__['__builtins__']['open']('CANARY').read()"),
        "write": programs.body("state['success'] = True"),
        "patch": programs.body("distance.cache = 1.0"),
        "import": programs.body("distance.__globals__['__builtins__']['__import__']('wave')"),
        "exit": programs.body("distance.__globals__['__builtins__']['exit']()"),
        "tuple": programs.result("(0.5, 0.5)"),
        "memory": programs.body("x = (0,) * 10 ** 10"),
    }
    verdicts = run("exec", list(chosen.items()), tmp_path)
    assert {name for name, v in verdicts.items() if v["verdict"] not in ("refused", "harmless")} == set(chosen)
    hang = run("exec", [("loop", programs.body("while True:\n    x = 1.0"))], tmp_path, timeout=3.0)
    assert hang["loop"]["verdict"] == "child hung"


HOSTILE_FRAGMENTS = [
    "distance.__globals__", "state.keys", "[1.0][0]", "(1.0, 2.0)", "'a'", "f'{state}'", "lambda: 1.0", "[x for x in state]",
    "9 ** 9", "2 ** 3", "state['eef_pos']", "state['success']", "1e6", "True", "state['nothing']", "max(1.0)", "abs(state)",
    "(y := 1.0)", "not 1.0", "1.0 < 2.0 < 3.0", "sqrt(-1.0)", "1.0 / 0.0", "exp(1e6)", "info['step']",
    "vec3(1.0, 2.0, 3.0)[1]", "None",
    "outside(state['eef_pos'], state['eef_pos'], state['eef_quat'], state['eef_pos'])",
    "ladder_above(1.0, 2.0)", "...",
]  # fmt: skip


def mutate(tree: ast.Module, rng: random.Random) -> str:
    """A program with one to three of its expressions or statements replaced by others or by hostile fragments."""
    nodes = [node for node in ast.walk(tree) if any(isinstance(v, ast.expr | list) for _, v in ast.iter_fields(node))]
    expressions = [node for node in ast.walk(tree) if isinstance(node, ast.expr)]
    for _ in range(rng.randint(1, 3)):
        node = rng.choice(nodes)
        field, value = rng.choice(
            [(f, v) for f, v in ast.iter_fields(node) if isinstance(v, ast.expr) or (isinstance(v, list) and v)]
        )
        fragment = rng.choice(HOSTILE_FRAGMENTS)
        new = ast.parse(fragment, mode="eval").body if rng.random() < 0.6 else rng.choice(expressions)
        if isinstance(value, list):
            if isinstance(value[0], ast.expr):
                value[rng.randrange(len(value))] = new
            elif rng.random() < 0.5:
                value.pop(rng.randrange(len(value)))
            else:
                value.insert(rng.randrange(len(value) + 1), rng.choice(value))
        else:
            setattr(node, field, new)
    return ast.unparse(ast.fix_missing_locations(tree))


def test_mutated_programs_never_break_out_or_raise() -> None:
    """Mutants are refused with a RewardError, or run: finite, bounded, without raising and without touching the state."""
    facts = make_facts()
    source = RewardProgram.from_spec(make_spec(), facts=facts).to_python()
    states = [
        make_state(facts),
        make_state(facts, eef_pos=(0.05, -0.1, 0.1), ketchup_1_grasped=True),
        make_state(facts, eef_pos=(1e6, float("inf"), float("nan")), gripper_opening=0.0),
        make_state(facts, goal_0=True, success=True),
    ]
    rng = random.Random(0)
    accepted = refused = 0
    for _ in range(2_500):
        try:
            mutant = mutate(ast.parse(source), rng)
        except (ValueError, IndexError, TypeError, AttributeError, RecursionError):
            continue
        try:
            program = RewardProgram.from_python(mutant, facts=facts)
        except RewardError:
            refused += 1
            continue
        accepted += 1
        before = repr(states)
        memory = program.reset()
        for _ in range(3):
            for state in states:
                step, memory = program(state, {"step": 1}, memory)
                assert type(step.reward) is float
                assert abs(step.reward) <= program.bound, mutant
                assert 0.0 <= step.progress <= 1.0
                assert 0 <= step.stage <= step.n_stages
        assert repr(states) == before
    assert accepted > 200
    assert refused > 200
