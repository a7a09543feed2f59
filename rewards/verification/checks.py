"""The checks V1 to V19, a method each, named after the check's title."""

import copy
import os
import pickle
import subprocess
import sys
import timeit
import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sb3_tgrpo.rewards.episodes import play as episodes
from sb3_tgrpo.rewards.episodes.play import Played, play
from sb3_tgrpo.rewards.episodes.traces import Trace
from sb3_tgrpo.rewards.facts import helpers
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts
from sb3_tgrpo.rewards.facts.vocabulary import State
from sb3_tgrpo.rewards.program.program import RewardProgram
from sb3_tgrpo.rewards.program.spec import DEBOUNCE_STEPS
from sb3_tgrpo.rewards.program.static_checks import check_names, check_payments
from sb3_tgrpo.rewards.verification.report import TITLES
from sb3_tgrpo.rewards.verification.rungs import before_contact, completions, idle_parts, missed_rungs, n_rungs

Result = tuple[bool | None, dict[str, Any], str]


class Verifier:
    """One program on one set of episodes."""

    def __init__(
        self, program: RewardProgram, traces: Sequence[Trace], facts: TaskFacts, seed: int, other_process: bool = True
    ) -> None:
        self.program, self.facts, self.seed, self.other_process = program, facts, seed, other_process
        self.traces = list(traces)
        self.played = [play(program, trace.states) for trace in self.traces]
        self.experts = [(t, p) for t, p in zip(self.traces, self.played, strict=True) if t.kind == "expert"]
        self.others = [(t, p) for t, p in zip(self.traces, self.played, strict=True) if t.kind != "expert"]
        self.least = min((p.total for _, p in self.experts), default=0.0)

    def check(self, check_id: str) -> Result:
        """Whether V1 to V19 passed (None: it does not apply), what was measured, and the first counter-example."""
        title = TITLES[check_id].replace(" ", "_").replace("-", "_")
        method: Callable[[], Result] = getattr(self, f"check_{title}")
        return method()

    def rng(self, check: int) -> np.random.Generator:
        """A generator of its own for each check: leaving one out changes no other."""
        return np.random.default_rng([self.seed, check])

    def check_names(self) -> Result:
        if self.program.spec is None:
            return True, {"source": "python"}, ""
        problems = check_names(self.program.spec, self.facts)
        return not problems, {"problems": len(problems)}, str(problems[0]) if problems else ""

    def check_payments_rise(self) -> Result:
        if self.program.spec is None:
            return None, {"why": "a Python program has no ladders to read"}, ""
        problems = check_payments(self.program.spec, self.facts)
        return not problems, {"problems": len(problems)}, str(problems[0]) if problems else ""

    def check_dominance(self) -> Result:
        """Finishing pays more than lingering to the horizon at the highest level, whatever the episode does."""
        length = max((trace.n_steps for trace, _ in self.experts), default=self.facts.horizon)
        bonus = self.program.success_points
        lingering = self.program.max_level * max(self.facts.horizon - length, 0)
        needed = lingering if self.program.payment == "per_step" else 0.0
        return bonus > needed, {"success bonus": bonus, "needed": needed, "expert steps": length}, ""

    def check_finite_and_bounded(self) -> Result:
        rng = self.rng(4)
        worst = 0.0
        memory = self.program.reset()
        for i in range(10_000):
            state = _random_state(self.program.keys, self.facts, rng, extreme=i % 10 == 0)
            if i % 50 == 0:
                memory = self.program.reset()
            step, memory = self.program(state, {"step": i % 50}, memory)
            if type(step.reward) is not float or not abs(step.reward) <= self.program.bound or step.terms["failures"]:
                brief = ", ".join(f"{key}={value}" for key, value in list(state.items())[:6])
                text = f"reward {step.reward!r}, failures {step.terms['failures']:g}: {brief}"
                return False, {"states": i + 1}, text
            worst = max(worst, abs(step.reward))
        failures = sum(played.steps[-1].terms["failures"] for played in self.played)
        return failures == 0, {"states": 10_000, "largest": worst, "bound": self.program.bound, "failures": failures}, ""

    def check_deterministic(self) -> Result:
        trace, played = (self.experts or self.others)[0]
        again = play(pickle.loads(pickle.dumps(self.program)), trace.states)
        if [s[:5] for s in again.steps] != [s[:5] for s in played.steps]:
            return False, {}, f"{trace.name}: a second run differs"
        if not self.other_process:
            return True, {"other process": "no"}, ""
        request = pickle.dumps((self.program, list(trace.states)))
        code = "import pickle, sys; from sb3_tgrpo.rewards.episodes.play import play; p, s = pickle.load(sys.stdin.buffer); "
        code += "sys.stdout.buffer.write(pickle.dumps([x[:5] for x in play(p, s).steps]))"
        environment = {**os.environ, "PYTHONHASHSEED": "12345"}
        run = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, env=environment, check=False)
        if run.returncode != 0:
            return False, {"other process": "failed"}, run.stderr.decode(errors="replace")[-300:]
        same = pickle.loads(run.stdout) == [s[:5] for s in played.steps]
        return same, {"other process": "yes"}, "" if same else f"{trace.name}: another process pays differently"

    def check_pure(self) -> Result:
        for trace, played in (self.experts or self.others)[:1]:
            memory = self.program.reset()
            for t, state in enumerate(trace.states):
                given, info = dict(state), {"step": t}
                kept = copy.deepcopy(memory)
                self.program(given, info, memory)
                if given != state or info != {"step": t} or memory != kept:
                    return False, {}, f"{trace.name} step {t}: its arguments changed"
                step, after = self.program(types.MappingProxyType(given), types.MappingProxyType(info), memory)
                if step[:5] != played.steps[t][:5]:
                    return False, {}, f"{trace.name} step {t}: a read-only state pays differently"
                memory = after
        return True, {}, ""

    def check_nothing_for_nothing(self) -> Result:
        noops = [(t, p) for t, p in self.others if t.kind == "noop"]
        limit = 0.02 * self.least
        for trace, played in noops:
            if played.total > limit:
                step = next(t for t, s in enumerate(played.steps) if s.reward > 0)
                text = f"{trace.name} step {step}: paid {played.steps[step].reward:g}"
                return False, {"noop": played.total, "limit": limit}, text
        resets = [(t, p.steps[0].terms["level"]) for t, p in zip(self.traces, self.played, strict=True)]
        worst = max(resets, key=lambda item: abs(item[1]))
        numbers = {"noop": max((p.total for _, p in noops), default=float("nan")), "limit": limit, "level at reset": worst[1]}
        if worst[1] > 0.02 * self.program.max_level:
            return False, numbers, f"{worst[0].name}: level {worst[1]:g} at reset"
        return (True if noops else None), numbers if noops else {"why": "no noop episode"}, ""

    def check_expert_replay(self) -> Result:
        if not self.experts:
            return False, {"experts": 0}, "there is no expert episode to replay"
        for trace, played in self.experts:
            problem = self._replay_problem(trace, played)
            if problem:
                return False, {"experts": len(self.experts)}, f"{trace.name}: {problem}"
        if self.program.spec is not None:
            idle = [set(idle_parts(self.program.spec, self.facts, played)) for _, played in self.experts]
            always = set.intersection(*idle)
            if always:
                return False, {"experts": len(self.experts)}, f"in every expert episode, {min(always).text}"
        return True, {"experts": len(self.experts), "rungs": n_rungs(self.program.spec)}, ""

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
            steps = completions(played, track.name, len(track.stages))
            for j, stage in enumerate(track.stages):
                if steps[j] is None:
                    return f"stage {stage.name} of {track.name} is never done"
                if j and not steps[j - 1] < steps[j]:  # type: ignore[operator]
                    both = f"{track.stages[j - 1].name} and {stage.name}"
                    return f"stages {both} of {track.name} are done at one step {steps[j]}"
        missed = missed_rungs(self.program.spec, self.facts, played)
        return f"no step passes {missed[0].text}" if missed else ""

    def check_separation(self) -> Result:
        if not self.experts or not self.others:
            return None, {"why": "needs expert and other episodes"}, ""
        trace, best = max(self.others, key=lambda item: item[1].total)
        margin = (self.least - best.total) / abs(self.least or 1.0)
        numbers = {"least expert": self.least, "largest other": best.total, "margin": margin}
        ok = self.least > best.total
        return ok, numbers, "" if ok else f"{trace.name} earns {best.total:.3f}, an expert {self.least:.3f}"

    def check_partial_order(self) -> Result:
        if not self.experts:
            return None, {"why": "no expert episode"}, ""
        smallest = float("inf")
        for trace, played in self.experts:
            cuts = [("reset", 0), *episodes.milestones(trace, self.facts)]
            sums = [float(sum(played.rewards[:step])) for _, step in cuts]
            for (name, _), low, (later, step), high in zip(cuts, sums, cuts[1:], sums[1:], strict=False):
                smallest = min(smallest, high - low)
                if high - low <= 1e-9:
                    text = f"{trace.name}: nothing is gained from {name} to {later} (step {step})"
                    return False, {"least gain": high - low}, text
            for k in range(2, self.program.n_stages + 1):
                a, b = played.first(k - 1), played.first(k)
                if a is not None and b is not None and a < b and sum(played.rewards[:b]) <= sum(played.rewards[:a]):
                    return False, {}, f"{trace.name}: stage {k} (step {b}) pays no more than stage {k - 1}"
        return True, {"least gain": smallest}, ""

    def check_rank_agreement(self) -> Result:
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
        text = "" if ok else "returns do not follow the stages reached"
        return ok, {"spearman": rho, "auc": auc, "episodes": len(pool)}, text

    def check_oscillation(self) -> Result:
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
                    text = f"{trace.name}: going back and forth over step {at} 18 more times pays"
                    return False, {"gain": often - twice}, text
        return (True if self.experts else None), {"gain": worst}, ""

    def check_flicker(self) -> Result:
        passed, numbers, counterexample = self._perturbed(13, 0.01, episodes.flicker, rungs=False)
        if passed is False:
            return passed, numbers, counterexample
        rng, limit = self.rng(130), 0.01 * abs(self.least)
        for trace, played in self.others:
            if trace.kind != "random":  # whose contacts are themselves chance
                gain = play(self.program, episodes.flicker(trace.states, rng)).total - played.total
                if gain > limit and self.experts:
                    return False, numbers, f"{trace.name}: {played.total:.3f} became {played.total + gain:.3f}"
        return passed, numbers, counterexample

    def check_noise(self) -> Result:
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
                numbers = {"change": change, "limit": limit}
                if change > limit:
                    return False, numbers, f"{trace.name}: {played.total:.3f} became {other.total:.3f}"
                problem = self._replay_problem(trace, other) if rungs else ""
                if problem:
                    return False, numbers, f"{trace.name}, perturbed: {problem}"
        return (True if self.experts else None), {"change": worst, "limit": limit}, ""

    def check_invariance(self) -> Result:
        kinds = self.facts.state_types
        distractors = [name for name in self.facts.names("object") if name not in episodes.objects_of_goal(self.facts)]
        moved = {f"{name}_pos" for name in distractors}

        def negative(state: State) -> State:
            return {k: tuple(-v for v in x) if kinds.get(k) == "quat" else x for k, x in state.items()}  # type: ignore[union-attr]

        def shifted(state: State) -> State:
            return {k: helpers.add(x, (0.03, -0.02, 0.0)) if kinds.get(k) == "vec3" else x for k, x in state.items()}  # type: ignore[arg-type]

        def cluttered(state: State) -> State:
            return {k: (0.3, 0.3, 2.0) if k in moved else x for k, x in state.items()}

        edits = {"-q for q": negative, "the scene moved": shifted, "distractors moved": cluttered}
        for trace, played in self.experts[:1] or self.others[:1]:
            for name, edit in edits.items():
                other = play(self.program, list(map(edit, trace.states)))
                for t, (a, b) in enumerate(zip(played.steps, other.steps, strict=True)):
                    if abs(a.reward - b.reward) > 1e-6:
                        return False, {}, f"{trace.name} step {t}: {name}, {a.reward:g} became {b.reward:g}"
        return True, {"distractors": len(distractors)}, ""

    def check_wrong_object(self) -> Result:
        spec = self.program.spec
        limit = sum(before_contact(track, self.facts) for track in spec.tracks) if spec else 0.25 * self.program.max_level
        candidates = [(t.name, p.total) for t, p in self.others if t.kind == "wrong-object"]
        targets = [atom.args[0] for atom in self.facts.goal if atom.args[0] in self.facts.names("object")]
        others = [name for name in self.facts.names("object") if name not in episodes.objects_of_goal(self.facts)]
        for trace, _ in self.experts[:1]:
            states: Sequence[State] = trace.states
            # One that was touched on the way would turn into a target that was.
            spare = [name for name in others if not any(state[f"{name}_touched"] for state in states)]
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
        text = "" if ok else f"{name} earns {worst:.3f}, more than approaching ({limit:g})"
        return ok, {"return": worst, "limit": limit}, text

    def check_goal_agreement(self) -> Result:
        checked = 0
        for trace, played in zip(self.traces, self.played, strict=True):
            behind = ahead = 0
            for t, (state, step) in enumerate(zip(trace.states, played.steps, strict=True)):
                complete = step.stage == step.n_stages
                behind = behind + 1 if state["success"] and not complete else 0
                guarded = step.terms["level"] >= self.program.max_level - 1e-9
                ahead = ahead + 1 if complete and guarded and not state["success"] else 0
                checked += 1
                # One step of lag is tolerated, but an episode that ends at success has none to spare.
                if behind > (1 if t + 1 < len(trace.states) else 0):
                    return False, {}, f"{trace.name} step {t}: the goal holds, {step.stage} of {step.n_stages} stages are done"
                if ahead > DEBOUNCE_STEPS:
                    return False, {}, f"{trace.name} step {t}: all stages are done, the goal does not hold"
        return True, {"states": checked}, ""

    def check_order_of_sub_goals(self) -> Result:
        spec = self.program.spec
        free = [t for t in spec.tracks if not t.after and len(t.goal) == 1] if spec else []
        things = [(track.goal[0], self.facts.goal[track.goal[0]].args[0]) for track in free]
        moved = [(k, name) for k, name in things if name in self.facts.names("object")]
        pairs = [(a, b) for a in moved for b in moved if a[1] != b[1]]
        done = 0
        for trace, played in self.experts:
            for (first, one), (second, other) in pairs:
                states = episodes.swap_order(trace, one, other, first, second, self.facts)
                if states is None or _first_goal(trace, first) > _first_goal(trace, second):
                    continue
                done += 1
                total = play(self.program, states).total
                if abs(total - played.total) > 0.01 * abs(played.total) and self.program.payment != "per_step":
                    return False, {}, f"{trace.name}: {played.total:.3f}, {second} before {first} {total:.3f}"
        if not done:
            return None, {"why": "no two sub-goals of free order in an episode"}, ""
        return True, {"swaps": done}, ""

    def check_cost(self) -> Result:
        trace, _ = (self.experts or self.others)[0]
        calls = []
        memory = self.program.reset()
        for t, state in enumerate(trace.states):
            calls.append((state, {"step": t}, memory))
            memory = self.program(*calls[-1])[1]
        best = [min(timeit.repeat(partial(self.program, *call), number=1, repeat=5)) * 1e6 for call in calls[:300]]
        p50, p99 = float(np.percentile(best, 50)), float(np.percentile(best, 99))
        return p99 < 100.0, {"p50 us": p50, "p99 us": p99}, ""


def _first_goal(trace: Trace, k: int) -> int:
    return next((t for t, state in enumerate(trace.states) if state[f"goal_{k}"]), len(trace.states))


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
