"""
Does a reward do what a reward must? Twenty named checks on recorded episodes, with numbers and the first counter-example.

Checks are played under the program's own payment rule. ``per_step`` cannot pass dominance (V3), separation (V9) or oscillation
(V12) in general; the report then says by how much.
"""

import copy
import json
import os
import pickle
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sb3_tgrpo.rewards import episodes
from sb3_tgrpo.rewards.check import check_names, check_payments
from sb3_tgrpo.rewards.compile import _Compiler
from sb3_tgrpo.rewards.episodes import Played, play
from sb3_tgrpo.rewards.program import RewardProgram
from sb3_tgrpo.rewards.spec import DEBOUNCE_STEPS, RewardSpec
from sb3_tgrpo.rewards.task_facts import TaskFacts, load_task_facts
from sb3_tgrpo.rewards.traces import Trace, TraceKind
from sb3_tgrpo.rewards.vocabulary import State

OTHER_KINDS: tuple[TraceKind, ...] = ("noop", "random", "hover", "oscillate", "wrong-object", "partial")
TITLES = {
    "V1": "names",
    "V2": "payments rise",
    "V3": "dominance",
    "V4": "finite and bounded",
    "V5": "deterministic",
    "V6": "pure",
    "V7": "nothing for nothing",
    "V8": "expert replay",
    "V9": "separation",
    "V10": "partial order",
    "V11": "rank agreement",
    "V12": "oscillation",
    "V13": "flicker",
    "V14": "noise",
    "V15": "invariance",
    "V16": "wrong object",
    "V17": "goal agreement",
    "V18": "order of sub-goals",
    "V19": "cost",
    "V20": "mutation score",
}
_REPORT_ONLY = {"V20"}


@dataclass(frozen=True)
class Check:
    """
    One check's outcome.

    :param id: ``V1`` to ``V20``.
    :param title: its name.
    :param passed: None if it does not apply, and ``numbers["why"]`` says why.
    :param hard: a failure fails the report.
    :param numbers: what was measured.
    :param counterexample: the first episode and step that fails, or the first problem.
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

    :param task: the task.
    :param payment: rule under which episodes were paid.
    :param sha256: of the spec, ``""`` for Python.
    :param trace_sources: where the episodes come from, see :data:`~sb3_tgrpo.rewards.traces.TraceSource`.
    :param returns: per kind of episode: number, least, mean and largest return.
    :param stages: per stage of the first expert episode: when it was entered and done, its points, its ladder's variable.
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
            numbers = ", ".join(f"{key} {_short(value)}" for key, value in check.numbers.items())
            lines.append(f"  {check.id:<4} {check.title:<20} {mark:<5} {numbers}")
            if check.counterexample:
                lines.append(f"       {check.counterexample}")
        return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


Result = tuple[bool | None, dict[str, Any], str]


class Verifier:
    """One program on one set of episodes; a method per check, ``v1`` to ``v20``."""

    def __init__(self, program: RewardProgram, traces: Sequence[Trace], facts: TaskFacts, seed: int) -> None:
        self.program, self.facts, self.seed = program, facts, seed
        self.traces = list(traces)
        self.played = [play(program, trace.states) for trace in self.traces]
        self.experts = [(t, p) for t, p in zip(self.traces, self.played, strict=True) if t.kind == "expert"]
        self.others = [(t, p) for t, p in zip(self.traces, self.played, strict=True) if t.kind != "expert"]
        self.least = min((p.total for _, p in self.experts), default=0.0)

    def rng(self, check: int) -> np.random.Generator:
        """A generator of its own for each check: leaving one out changes no other."""
        return np.random.default_rng([self.seed, check])

    # static

    def v1(self) -> Result:
        if self.program.spec is None:
            return True, {"source": "python"}, ""
        problems = check_names(self.program.spec, self.facts)
        return not problems, {"problems": len(problems)}, str(problems[0]) if problems else ""

    def v2(self) -> Result:
        if self.program.spec is None:
            return None, {"why": "a Python program has no ladders to read"}, ""
        problems = check_payments(self.program.spec, self.facts)
        return not problems, {"problems": len(problems)}, str(problems[0]) if problems else ""

    def v3(self) -> Result:
        """Finishing pays more than lingering to the horizon at the highest level, whatever the episode does."""
        length = max((trace.n_steps for trace, _ in self.experts), default=self.facts.horizon)
        bonus = max((s.terms["success_bonus"] for _, p in self.experts for s in p.steps), default=0.0)
        if self.program.payment == "per_step":
            needed = self.program.max_level * max(self.facts.horizon - length, 0)
        else:
            needed = 0.0
        return bonus > needed, {"success bonus": bonus, "needed": needed, "expert steps": length}, ""

    # run

    def v4(self) -> Result:
        rng = self.rng(4)
        worst = 0.0
        memory = self.program.reset()
        for i in range(10_000):
            state = _random_state(self.program.keys, self.facts, rng, extreme=i % 10 == 0)
            if i % 50 == 0:
                memory = self.program.reset()
            step, memory = self.program(state, {"step": i % 50}, memory)
            if type(step.reward) is not float or not abs(step.reward) <= self.program.bound or step.terms["failures"]:
                return (
                    False,
                    {"states": i + 1},
                    f"reward {step.reward!r}, failures {step.terms['failures']:g}: {_brief(state)}",
                )
            worst = max(worst, abs(step.reward))
        failures = sum(played.steps[-1].terms["failures"] for played in self.played)
        return failures == 0, {"states": 10_000, "largest": worst, "bound": self.program.bound, "failures": failures}, ""

    def v5(self, other_process: bool = True) -> Result:
        trace, played = (self.experts or self.others)[0]
        again = play(pickle.loads(pickle.dumps(self.program)), trace.states)
        if [s[:5] for s in again.steps] != [s[:5] for s in played.steps]:
            return False, {}, f"{trace.name}: a second run differs"
        if not other_process:
            return True, {"other process": "no"}, ""
        request = pickle.dumps((self.program, list(trace.states)))
        code = "import pickle, sys; from sb3_tgrpo.rewards.episodes import play; p, s = pickle.load(sys.stdin.buffer); "
        code += "sys.stdout.buffer.write(pickle.dumps([x[:5] for x in play(p, s).steps]))"
        environment = {**os.environ, "PYTHONHASHSEED": "12345"}
        run = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, env=environment, check=False)
        if run.returncode != 0:
            return False, {"other process": "failed"}, run.stderr.decode(errors="replace")[-300:]
        same = pickle.loads(run.stdout) == [s[:5] for s in played.steps]
        return same, {"other process": "yes"}, "" if same else f"{trace.name}: another process pays differently"

    def v6(self) -> Result:
        for trace, played in (self.experts or self.others)[:1]:
            memory = self.program.reset()
            for t, state in enumerate(trace.states):
                before, kept = dict(state), copy.deepcopy(memory)
                info = types.MappingProxyType({"step": t})
                step, after = self.program(types.MappingProxyType(state), info, memory)
                if state != before or memory != kept:
                    return False, {}, f"{trace.name} step {t}: its arguments changed"
                if step[:5] != played.steps[t][:5]:
                    return False, {}, f"{trace.name} step {t}: a read-only state pays differently"
                memory = after
        return True, {}, ""

    def v7(self) -> Result:
        noops = [(t, p) for t, p in self.others if t.kind == "noop"]
        limit = 0.02 * self.least
        for trace, played in noops:
            if played.total > limit:
                step = next(t for t, s in enumerate(played.steps) if s.reward > 0)
                return (
                    False,
                    {"noop": played.total, "limit": limit},
                    f"{trace.name} step {step}: paid {played.steps[step].reward:g}",
                )
        resets = [(t, p.steps[0].terms["level"]) for t, p in zip(self.traces, self.played, strict=True)]
        worst = max(resets, key=lambda item: abs(item[1]))
        numbers = {"noop": max((p.total for _, p in noops), default=float("nan")), "limit": limit, "level at reset": worst[1]}
        if worst[1] > 0.02 * self.program.max_level:
            return False, numbers, f"{worst[0].name}: level {worst[1]:g} at reset"
        return (True if noops else None), numbers if noops else {"why": "no noop episode"}, ""

    # episodes

    def v8(self) -> Result:
        if not self.experts:
            return None, {"why": "no expert episode"}, ""
        for trace, played in self.experts:
            problem = self._replay_problem(trace, played)
            if problem:
                return False, {"experts": len(self.experts)}, f"{trace.name}: {problem}"
        if self.program.spec is not None:
            idle = [set(_idle_parts(self.program.spec, self.facts, played)) for _, played in self.experts]
            always = set.intersection(*idle)
            if always:
                return False, {"experts": len(self.experts)}, f"in every expert episode, {sorted(always)[0]}"
        return True, {"experts": len(self.experts), "rungs": _n_rungs(self.program.spec)}, ""

    def _replay_problem(self, trace: Trace, played: Played) -> str:
        success = trace.success_step
        if success is None:
            return "the expert never succeeds"
        paid = [t for t, step in enumerate(played.steps) if step.terms["success_bonus"] > 0]
        if paid != [success]:
            return f"success is paid at steps {paid}, the goal holds from step {success}"
        reached = [played.first(k) for k in range(1, self.program.n_stages + 1)]
        for k, step in enumerate(reached, start=1):
            if step is None:
                return f"only {k - 1} of {self.program.n_stages} stages are ever done"
        if self.program.spec is None:
            return ""
        for track in self.program.spec.tracks:
            steps = _completions(played, track.name, len(track.stages))
            for j, stage in enumerate(track.stages):
                if steps[j] is None:
                    return f"stage {stage.name} of {track.name} is never done"
                if j and not steps[j - 1] < steps[j]:  # type: ignore[operator]
                    return (
                        f"stages {track.stages[j - 1].name} and {stage.name} of {track.name} are done at one step {steps[j]}"
                    )
        missed = missed_rungs(self.program.spec, self.facts, played)
        return f"no step passes {missed[0]}" if missed else ""

    def v9(self) -> Result:
        if not self.experts or not self.others:
            return None, {"why": "needs expert and other episodes"}, ""
        trace, best = max(self.others, key=lambda item: item[1].total)
        numbers = {
            "least expert": self.least,
            "largest other": best.total,
            "margin": (self.least - best.total) / abs(self.least or 1.0),
        }
        ok = self.least > best.total
        return ok, numbers, "" if ok else f"{trace.name} earns {best.total:.3f}, an expert {self.least:.3f}"

    def v10(self) -> Result:
        if not self.experts:
            return None, {"why": "no expert episode"}, ""
        smallest = float("inf")
        for trace, played in self.experts:
            cuts = [("reset", 0), *episodes.milestones(trace, self.facts)]
            sums = [float(sum(played.rewards[:step])) for _, step in cuts]
            for (name, _), low, (later, step), high in zip(cuts, sums, cuts[1:], sums[1:], strict=False):
                smallest = min(smallest, high - low)
                if high - low <= 1e-9:
                    return (
                        False,
                        {"least gain": high - low},
                        f"{trace.name}: nothing is gained from {name} to {later} (step {step})",
                    )
            for k in range(2, self.program.n_stages + 1):
                a, b = played.first(k - 1), played.first(k)
                if a is not None and b is not None and a < b and sum(played.rewards[:b]) <= sum(played.rewards[:a]):
                    return False, {}, f"{trace.name}: stage {k} (step {b}) pays no more than stage {k - 1}"
        return True, {"least gain": smallest}, ""

    def v11(self) -> Result:
        pool = [(p.total, p.most_stages + float(any(s.terms["success_bonus"] > 0 for s in p.steps))) for p in self.played]
        for trace, _played in self.experts:
            for _, step in episodes.milestones(trace, self.facts)[:-1]:
                cut = play(self.program, trace.states[: step + 1])
                pool.append((cut.total, float(cut.most_stages)))
        returns, ranks = np.array([a for a, _ in pool]), np.array([b for _, b in pool])
        success = ranks > self.program.n_stages
        if not success.any() or success.all():
            return None, {"why": "needs successes and failures"}, ""
        rho = _spearman(returns, ranks)
        pairs = returns[success][:, None] - returns[~success][None]
        auc = float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
        ok = rho >= 0.9 and auc >= 0.99
        return (
            ok,
            {"spearman": rho, "auc": auc, "episodes": len(pool)},
            "" if ok else "returns do not follow the stages reached",
        )

    def v12(self) -> Result:
        worst = 0.0
        for trace, played in self.experts[:2]:
            for k in range(1, self.program.n_stages):
                at = played.first(k)
                if at is None or at < 2:
                    continue
                states = list(trace.states)
                segment = states[max(at - 8, 0) : at + 1]
                back_and_forth = segment[::-1] + segment
                twice = play(self.program, states[: at + 1] + back_and_forth * 2).total
                often = play(self.program, states[: at + 1] + back_and_forth * 20).total
                worst = max(worst, often - twice)
                if often - twice > 1e-9:
                    return (
                        False,
                        {"gain": often - twice},
                        f"{trace.name}: going back and forth over step {at} 18 more times pays",
                    )
        return (True if self.experts else None), {"gain": worst}, ""

    def v13(self) -> Result:
        return self._perturbed(13, 0.01, lambda states, rng: episodes.flicker(states, rng), rungs=False)

    def v14(self) -> Result:
        return self._perturbed(14, 0.05, lambda states, rng: episodes.noisy(states, self.facts, rng), rungs=True)

    def _perturbed(
        self, number: int, limit: float, perturb: Callable[[Sequence[State], np.random.Generator], list[State]], rungs: bool
    ) -> Result:
        rng, worst = self.rng(number), 0.0
        for trace, played in self.experts[:3]:
            for _ in range(3):
                other = play(self.program, perturb(trace.states, rng))
                change = abs(other.total - played.total) / max(abs(played.total), 1e-9)
                worst = max(worst, change)
                if change > limit:
                    return (
                        False,
                        {"change": change, "limit": limit},
                        f"{trace.name}: {played.total:.3f} became {other.total:.3f}",
                    )
                missed = missed_rungs(self.program.spec, self.facts, other) if rungs and self.program.spec else []
                if missed:
                    return False, {"change": change, "limit": limit}, f"{trace.name}: no step passes {missed[0]} any more"
        return (True if self.experts else None), {"change": worst, "limit": limit}, ""

    def v15(self) -> Result:
        kinds = self.facts.state_types
        distractors = [name for name in self.facts.names("object") if name not in episodes.objects_of_goal(self.facts)]
        moved = {f"{name}_pos" for name in distractors}

        def negative(state: State) -> State:
            return {k: tuple(-v for v in x) if kinds.get(k) == "quat" else x for k, x in state.items()}  # type: ignore[union-attr]

        def shifted(state: State) -> State:
            return {
                k: (x[0] + 0.03, x[1] - 0.02, x[2]) if kinds.get(k) == "vec3" else x  # type: ignore[index]
                for k, x in state.items()
            }

        def cluttered(state: State) -> State:
            return {k: (0.3, 0.3, 2.0) if k in moved else x for k, x in state.items()}

        edits = {"-q for q": negative, "the scene moved": shifted, "distractors moved": cluttered}
        for trace, played in self.experts[:1] or self.others[:1]:
            for name, edit in edits.items():
                other = play(self.program, episodes.change(trace.states, edit))
                for t, (a, b) in enumerate(zip(played.steps, other.steps, strict=True)):
                    if abs(a.reward - b.reward) > 1e-6:
                        return False, {}, f"{trace.name} step {t}: {name}, {a.reward:g} became {b.reward:g}"
        return True, {"distractors": len(distractors)}, ""

    def v16(self) -> Result:
        spec = self.program.spec
        limit = sum(_before_contact(track) for track in spec.tracks) if spec else 0.25 * self.program.max_level
        candidates = [(t.name, p.total) for t, p in self.others if t.kind == "wrong-object"]
        targets = [atom.args[0] for atom in self.facts.goal if atom.args[0] in self.facts.names("object")]
        spare = [name for name in self.facts.names("object") if name not in episodes.objects_of_goal(self.facts)]
        for trace, _ in self.experts[:1]:
            states: Sequence[State] = trace.states
            pairs = list(zip(dict.fromkeys(targets), spare, strict=False))
            if len(pairs) == len(set(targets)) and pairs:
                for target, other in pairs:
                    states = episodes.exchange(states, target, other, self.facts)
                candidates.append((f"{trace.name} with {pairs[0][1]}", play(self.program, states).total))
        if not candidates:
            return None, {"why": "no other object to move"}, ""
        if self.program.payment == "per_step":
            limit *= self.facts.horizon
        name, worst = max(candidates, key=lambda item: item[1])
        ok = worst <= limit * 1.001
        return (
            ok,
            {"return": worst, "limit": limit},
            "" if ok else f"{name} earns {worst:.3f}, more than approaching ({limit:g})",
        )

    def v17(self) -> Result:
        checked = 0
        for trace, played in zip(self.traces, self.played, strict=True):
            behind = ahead = 0
            for t, (state, step) in enumerate(zip(trace.states, played.steps, strict=True)):
                complete = step.stage == step.n_stages
                behind = behind + 1 if state["success"] and not complete else 0
                guarded = step.terms["level"] >= self.program.max_level - 1e-9
                ahead = ahead + 1 if complete and guarded and not state["success"] else 0
                checked += 1
                if behind > 1:
                    return False, {}, f"{trace.name} step {t}: the goal holds, {step.stage} of {step.n_stages} stages are done"
                if ahead > DEBOUNCE_STEPS:
                    return False, {}, f"{trace.name} step {t}: all stages are done, the goal does not hold"
        return True, {"states": checked}, ""

    def v18(self) -> Result:
        spec = self.program.spec
        free = [t for t in spec.tracks if not t.after and len(t.goal) == 1] if spec else []
        pairs = [
            (a, b)
            for a in free
            for b in free
            if a is not b
            and self._object(a.goal[0])
            and self._object(b.goal[0])
            and self._object(a.goal[0]) != self._object(b.goal[0])
        ]
        done = 0
        for trace, played in self.experts:
            for a, b in pairs:
                first, second = a.goal[0], b.goal[0]
                states = episodes.swap_order(trace, self._object(first), self._object(second), first, second, self.facts)
                if states is None or _first_goal(trace, first) > _first_goal(trace, second):
                    continue
                done += 1
                total = play(self.program, states).total
                if abs(total - played.total) > 0.01 * abs(played.total) and self.program.payment != "per_step":
                    return False, {}, f"{trace.name}: {played.total:.3f}, {second} before {first} {total:.3f}"
        return (
            (True if done else None),
            {"swaps": done} if done else {"why": "no two sub-goals of free order in an episode"},
            "",
        )

    def _object(self, k: int) -> str:
        name = self.facts.goal[k].args[0]
        return name if name in self.facts.names("object") else ""

    def v19(self) -> Result:
        trace, _ = (self.experts or self.others)[0]
        calls = []
        memory = self.program.reset()
        for t, state in enumerate(trace.states):
            calls.append((state, {"step": t}, memory))
            memory = self.program(*calls[-1])[1]
        best = []
        for call in calls[:300]:
            spans = []
            for _ in range(5):
                start = time.perf_counter()
                self.program(*call)
                spans.append(time.perf_counter() - start)
            best.append(min(spans) * 1e6)
        p50, p99 = float(np.percentile(best, 50)), float(np.percentile(best, 99))
        return p99 < 100.0, {"p50 us": p50, "p99 us": p99}, ""


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

    :param program: the reward; ``program.with_payment(...)`` for another rule.
    :param traces: recorded episodes of its task: experts and as many of the other kinds as there are.
    :param facts: facts of the task; None = the shipped ones.
    :param mutation: also compute the mutation score (V20): some seconds.
    :param other_process: V5 also compares with another process under another hash seed.
    :param seed: of the random states and perturbations.
    :raises ValueError: if there are no traces or they are of another task.
    """
    facts = facts or load_task_facts(program.task)
    if not traces:
        raise ValueError("traces is empty: record some or load the shipped ones with load_traces(task).")
    strangers = {trace.task for trace in traces} - {program.task}
    if strangers:
        raise ValueError(f"traces are of {sorted(strangers)}, the reward is for {program.task!r}.")
    verifier = Verifier(program, traces, facts, seed)
    checks = [_check(verifier, f"V{k}", other_process) for k in range(1, 20)]
    checks.append(_mutation_check(program, traces, facts, seed) if mutation else _skipped("V20", "not asked for"))
    return VerificationReport(
        program.task,
        program.payment,
        program.spec.sha256 if program.spec else "",
        tuple(sorted({trace.source for trace in traces})),
        tuple(checks),
        _returns(verifier),
        tuple(_stage_rows(verifier)),
    )


def _check(verifier: Verifier, check_id: str, other_process: bool) -> Check:
    if check_id == "V5":
        passed, numbers, counterexample = verifier.v5(other_process)
    else:
        passed, numbers, counterexample = getattr(verifier, check_id.lower())()
    return Check(check_id, TITLES[check_id], passed, check_id not in _REPORT_ONLY, numbers, counterexample)


def _skipped(check_id: str, why: str) -> Check:
    return Check(check_id, TITLES[check_id], None, check_id not in _REPORT_ONLY, {"why": why})


# mutation score

_MUTANT_CHECKS = ("V1", "V2", "V3", "V7", "V8", "V10", "V9", "V16", "V17", "V18", "V12", "V13", "V14", "V15", "V11")


def _mutation_check(program: RewardProgram, traces: Sequence[Trace], facts: TaskFacts, seed: int) -> Check:
    if program.spec is None:
        return _skipped("V20", "a Python program has no fields to mutate")
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
    """
    The first check that rejects a spec, cheapest first; ``schema`` if it does not even parse, None if it passes them all.

    :param document: the spec as JSON values.
    """
    try:
        program = RewardProgram.from_spec(document, facts=facts, payment=payment)
    except ValueError:
        return "schema"
    verifier = Verifier(program, traces, facts, seed)
    for check_id in _MUTANT_CHECKS:
        if _check(verifier, check_id, False).passed is False:
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


# helpers


def _completions(played: Played, track: str, n_stages: int) -> list[int | None]:
    at = [step.terms[f"stage_{track}"] for step in played.steps]
    return [next((t for t, value in enumerate(at) if value > j), None) for j in range(n_stages)]


def missed_rungs(spec: RewardSpec, facts: TaskFacts, played: Played) -> list[str]:
    """Rungs that no step of an episode passes while their stage is on, up to the step that completes it."""
    compiler = _Compiler(spec, facts)
    start: dict[str, Any] = {name: played.states[0][f"{name}_pos"] for name in facts.names("object")}
    missed = []
    for track in spec.tracks:
        at = [step.terms[f"stage_{track.name}"] for step in played.steps]
        for j, stage in enumerate(track.stages):
            if stage.ladder is None:
                continue
            variable = compiler.variable(stage.ladder.variable)
            on = [t for t in range(len(at)) if at[t] == j or (t and at[t - 1] == j)]
            values = [variable(played.states[t], start) for t in on]
            for rung in stage.ladder.rungs:
                below = stage.ladder.op == "below"
                if not any(v < rung.threshold if below else v > rung.threshold for v in values):
                    reached = (min(values) if below else max(values)) if values else float("nan")
                    missed.append(f"rung {rung.threshold:g} of {track.name}.{stage.name} (nearest {reached:.4f})")
    return missed


_NOISE = 0.004
"""Metres or radians: what a rung must be away from where its stage begins."""


def _idle_parts(spec: RewardSpec, facts: TaskFacts, played: Played) -> Iterator[str]:
    """Requirements that hold before anything is done, and rungs that are passed when their stage begins: they do nothing."""
    compiler = _Compiler(spec, facts)
    start: dict[str, Any] = {name: played.states[0][f"{name}_pos"] for name in facts.names("object")}
    for track in spec.tracks:
        done = _completions(played, track.name, len(track.stages))
        for j, stage in enumerate(track.stages):
            parts = [part for c in stage.requires for part in getattr(c, "conditions", (c,))]
            for part in parts:
                if compiler.condition(part)(played.states[0], start):
                    yield f"{track.name}.{stage.name} requires what already holds at reset: {part.model_dump(mode='json')}"
            if stage.ladder is None:
                continue
            entered = done[j - 1] if j else 0
            value = compiler.variable(stage.ladder.variable)(played.states[entered or 0], start)
            for rung in stage.ladder.rungs:
                way = value - rung.threshold if stage.ladder.op == "below" else rung.threshold - value
                if way < _NOISE:
                    yield f"rung {rung.threshold:g} of {track.name}.{stage.name} is passed when the stage begins"


def _before_contact(track: Any) -> float:
    """Points of a track that need no contact with its object: all of them if it is about a joint."""
    total = 0.0
    for stage in track.stages:
        if any(
            c.kind in ("grasped", "touched") and getattr(c, "object", getattr(c, "name", "")) == track.name for c in stage.done
        ):
            return total
        total += stage.points
    return total


def _n_rungs(spec: RewardSpec | None) -> int:
    return sum(len(s.ladder.rungs) for t in spec.tracks for s in t.stages if s.ladder) if spec else 0


def _first_goal(trace: Trace, k: int) -> int:
    return next((t for t, state in enumerate(trace.states) if state[f"goal_{k}"]), len(trace.states))


def _brief(state: State) -> str:
    return ", ".join(f"{key}={value}" for key, value in list(state.items())[:6])


def _random_state(keys: Sequence[str], facts: TaskFacts, rng: np.random.Generator, extreme: bool) -> State:
    """Values for the keys that a program reads: uniform in the workspace, at times absurd."""
    kinds = facts.state_types
    numbers = iter(rng.random(4 * len(keys)).tolist())
    factor = 1e6 if extreme else 1.0
    state: State = {}
    for key in keys:
        kind = kinds[key]
        if kind == "bool":
            state[key] = next(numbers) < 0.3
        elif kind == "scalar":
            state[key] = (next(numbers) * 0.4 - 0.2) * factor
        elif kind == "vec3":
            state[key] = ((next(numbers) - 0.5) * factor, (next(numbers) - 0.5) * factor, (next(numbers) * 1.5) * factor)
        else:
            q = [next(numbers) - 0.5 for _ in range(4)]
            norm = sum(v * v for v in q) ** 0.5 or 1.0
            state[key] = tuple(v / norm for v in q)
    return state


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    def ranks(x: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(np.round(x, 9), return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


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
    compiler = _Compiler(spec, verifier.facts)
    start: dict[str, Any] = {name: played.states[0][f"{name}_pos"] for name in verifier.facts.names("object")}
    rows = []
    for track in spec.tracks:
        done = _completions(played, track.name, len(track.stages))
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
            rows.append(
                {
                    "name": f"{track.name}.{stage.name}",
                    "entered": entered,
                    "done": done[j],
                    "points": stage.points,
                    "variable": text,
                }
            )
    return rows
