"""
Have a language model write a reward, verify it on recorded episodes, and return what failed: the paper's section IV-A
and the part that it leaves open.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.rewards.episodes.kinematic import task_traces
from sb3_tgrpo.rewards.episodes.measure import measure
from sb3_tgrpo.rewards.episodes.traces import Trace
from sb3_tgrpo.rewards.facts.errors import Problem, RewardError
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts
from sb3_tgrpo.rewards.generation import api, prompt
from sb3_tgrpo.rewards.program.level import DEFAULT_PAYMENT, Payment
from sb3_tgrpo.rewards.program.program import RewardProgram
from sb3_tgrpo.rewards.program.spec import RewardSpec
from sb3_tgrpo.rewards.verification.verify import VerificationReport, verify_reward

DEFAULT_MODEL = "claude-opus-5-5"
_TOKENS = ("input_tokens", "output_tokens", "cache_read_input_tokens")


@dataclass(frozen=True)
class Attempt:
    """
    One answer and what became of it.

    :param outcome: ``verified``, ``failed checks``, ``invalid``, ``refused`` or ``cut off``.
    :param report: None if the answer never became a program.
    """

    candidate: int
    round: int
    outcome: str
    answer: api.Answer
    report: VerificationReport | None = None
    problems: tuple[str, ...] = ()
    spec: RewardSpec | None = None

    @property
    def verdict(self) -> str:
        """The outcome and what failed, in a line."""
        detail = ", ".join(self.report.failed) if self.report else "; ".join(self.problems[:3])
        return f"{self.outcome}: {detail}" if detail else self.outcome


@dataclass(frozen=True)
class GeneratedReward:
    """
    The best verified reward and how it came about.

    :param program: The reward.
    :param report: Its verification.
    :param cost_usd: Estimate for all attempts, cut-off answers included; None if the model's price is not known.
    :param provenance: Model, prompt hash, SDK version, rounds, tokens.
    """

    program: RewardProgram
    report: VerificationReport
    attempts: tuple[Attempt, ...]
    cost_usd: float | None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> RewardSpec:
        """What the model wrote."""
        assert self.program.spec is not None
        return self.program.spec


def generate_reward(
    task: str,
    client: Any = None,
    model: str | None = None,
    candidates: int = 2,
    max_rounds: int = 3,
    *,
    facts: TaskFacts | None = None,
    traces: Sequence[Trace] | None = None,
    out: str | os.PathLike[str] | None = None,
    payment: Payment = DEFAULT_PAYMENT,
    deadline: float = 1800.0,
    stream: bool = False,
    again: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda text: None,
) -> GeneratedReward:
    """
    Generate a verified reward for a task.

    :param task: ``"libero_object-3"``.
    :param client: An ``anthropic.Anthropic``; None = one with the environment's credentials.
    :param model: Model id; None = ``SB3_TGRPO_MODEL`` or :data:`DEFAULT_MODEL`.
    :param candidates: Independent attempts; there is no temperature to set, so their difference is the model's own.
    :param max_rounds: Answers per candidate; each after the first has seen the verifier's table of the one before.
    :param facts: Facts of the task, for one that ships none: ``TaskFacts.from_dict(LiberoEnv(...).task_facts())``.
    :param traces: Recorded episodes to verify on; None = the shipped ones, or kinematic ones where none ships.
    :param out: Folder for raw answers, reports and the result. A run that finds its own earlier answers there (same
        task, model and prompt) uses them instead of asking again. None = nothing is kept.
    :param again: Ask even so; the earlier answers stay in the folder.
    :param payment: Rule that episodes are paid by.
    :param deadline: Seconds that the whole call may spend waiting for the API.
    :param stream: Ask for streamed answers.
    :param sleep: Function that waits between retries; tests pass their own.
    :param tell: Function that gets a line for each answer, with the cost so far, and for each retry, with its reason.
    :raises RewardError: If no candidate passes every hard check; answers are kept in ``out``.
    :raises FatalAPIError: A RewardError: the API cannot be used, and asking for other tasks will not help either.
    :raises ValueError: If an argument is out of range, the task is unknown, or a kept answer is damaged.
    """
    if candidates < 1 or max_rounds < 1:
        raise ValueError(f"candidates and max_rounds must be at least 1, got {candidates} and {max_rounds}.")
    facts = load_task_facts(task) if facts is None else facts
    run = _Run(
        facts=facts,
        traces=list(task_traces(facts) if traces is None else traces),
        model=model or os.environ.get("SB3_TGRPO_MODEL") or DEFAULT_MODEL,
        payment=payment,
        folder=None if out is None else Path(out),
        deadline=time.monotonic() + deadline,
        stream=stream,
        again=again,
        sleep=sleep,
        tell=tell,
        client=client,
    )
    attempts: list[Attempt] = []
    failure: RewardError | None = None
    for candidate in range(1, candidates + 1):
        try:
            run.candidate(candidate, max_rounds, attempts)
        except (api.FatalAPIError, api.DeadlineError) as error:
            tell(str(error))
            failure = error
            break
    return run.result(attempts, failure)


@dataclass
class _Run:
    facts: TaskFacts
    traces: list[Trace]
    model: str
    payment: Payment
    folder: Path | None
    deadline: float
    stream: bool
    again: bool
    sleep: Callable[[float], None]
    tell: Callable[[str], None]
    client: Any
    lost: list[api.Answer] = field(default_factory=list)
    """Cut-off answers that no attempt followed: they are paid for too."""

    def candidate(self, candidate: int, max_rounds: int, attempts: list[Attempt]) -> None:
        """Ask, verify, tell, up to ``max_rounds`` times."""
        facts = prompt.facts_block(self.facts, measure(self.facts, self.traces))
        messages: list[dict[str, Any]] = [{"role": "user", "content": facts}]
        for round_ in range(1, max_rounds + 1):
            name = f"candidate-{candidate}-round-{round_}"
            answer = self.answer(name, messages)
            attempt = self.judge(candidate, round_, answer)
            attempts.append(attempt)
            report = attempt.report.to_dict() if attempt.report else None
            verdict = {"outcome": attempt.outcome, "problems": list(attempt.problems), "report": report}
            self.write(f"{name}.verdict.json", verdict)
            dollars = _cost([a.answer for a in attempts])
            cost = "cost unknown" if dollars is None else f"${dollars:.3f}"
            self.tell(f"candidate {candidate}, answer {round_} of at most {max_rounds}: {attempt.verdict}; {cost} so far")
            if attempt.outcome in ("verified", "refused"):
                return
            told = attempt.report.table() if attempt.report else "\n".join(attempt.problems)
            request = "The document was tested. Fix what fails and answer with the whole corrected document.\n\n" + told
            messages = [
                *messages,
                {"role": "assistant", "content": answer.text or "(empty)"},
                {"role": "user", "content": request},
            ]

    def answer(self, name: str, messages: list[dict[str, Any]]) -> api.Answer:
        """The kept answer of an earlier run to the same question, or a new one, kept before anything is made of it."""
        key = hashlib.sha256(json.dumps([prompt.prompt_hash(), self.model, messages]).encode()).hexdigest()
        files = [] if self.folder is None else sorted(self.folder.glob(f"{name}.answer*.json"), key=_number)
        for path in [] if self.again else reversed(files):
            if (kept := _read_answer(path, key)) is not None:
                return kept
        if self.client is None:
            self.client = api.make_client()
        number = _number(files[-1]) if files else 0
        came: list[api.Answer] = []
        question = api.Question(self.model, prompt.system_prompt(), messages, output_schema())
        self.tell(f"asking {self.model} ({name.replace('-', ' ')})")

        def keep(answer: api.Answer) -> None:
            came.append(answer)
            n = number + len(came)
            complete = answer.stop_reason not in (None, "max_tokens")
            document = {"question": key, "complete": complete, "answer": asdict(answer)}
            self.write(f"{name}.answer.json" if n == 1 else f"{name}.answer-{n}.json", document)

        try:
            return api.ask(
                self.client,
                question,
                deadline=self.deadline,
                stream=self.stream,
                sleep=self.sleep,
                on_answer=keep,
                tell=self.tell,
            )
        except (api.FatalAPIError, api.DeadlineError):
            self.lost += came[-1:]
            raise

    def judge(self, candidate: int, round_: int, answer: api.Answer) -> Attempt:
        """Parse and verify an answer."""
        if answer.stop_reason == "refusal":
            problem = f"refused, category {answer.refusal}"
            return Attempt(candidate, round_, "refused", answer, problems=(problem,))
        if answer.stop_reason != "end_turn":
            problem = f"cut off: {api.cut_off(answer.stop_reason)}; answer shorter"
            return Attempt(candidate, round_, "cut off", answer, problems=(problem,))
        try:
            # Bytes are always a document: an answer must not be taken for a path.
            fenced = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", answer.text, re.DOTALL)
            text = fenced[1] if fenced else answer.text
            program = RewardProgram.from_spec(text.encode(), facts=self.facts, payment=self.payment)
        except RewardError as error:
            return Attempt(candidate, round_, "invalid", answer, problems=tuple(map(str, error.problems)))
        report = verify_reward(program, self.traces, facts=self.facts, other_process=False)
        outcome = "verified" if report.passed else "failed checks"
        return Attempt(candidate, round_, outcome, answer, report, spec=program.spec)

    def result(self, attempts: list[Attempt], failure: RewardError | None) -> GeneratedReward:
        """The best verified attempt, or an error with the reasons why there is none."""
        answers = [*(attempt.answer for attempt in attempts), *self.lost]
        cost = _cost(answers)
        good = [attempt for attempt in attempts if attempt.outcome == "verified" and attempt.report]
        provenance = self.provenance(attempts, answers, cost)
        if not good:
            problems = [] if failure is None else list(failure.problems)
            problems += [Problem(f"candidate {a.candidate} round {a.round}", "", a.verdict) for a in attempts]
            # A suite stops at a wrong key, and goes on after a deadline or failed candidates.
            error = api.FatalAPIError if isinstance(failure, api.FatalAPIError) else RewardError
            raise error(problems or "no answer was obtained")
        best = max(good, key=lambda attempt: attempt.report.margin if attempt.report else -1.0)
        assert best.spec is not None and best.report is not None
        program = RewardProgram.from_spec(best.spec, facts=self.facts, payment=self.payment)
        self.write("spec.json", best.spec.model_dump(mode="json"))
        self.write("report.json", {**best.report.to_dict(), "provenance": provenance})
        self.write("result.json", {"task": self.facts.task_id, "candidate": best.candidate, "round": best.round, **provenance})
        return GeneratedReward(program, best.report, tuple(attempts), cost, provenance)

    def provenance(self, attempts: list[Attempt], answers: list[api.Answer], cost: float | None) -> dict[str, Any]:
        """Who wrote it, with what, at what price."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            sdk = version("anthropic")
        except PackageNotFoundError:  # pragma: no cover - a caller's own client
            sdk = "unknown"
        return {
            "origin": "generated",
            "model": self.model,
            "models_answering": sorted({attempt.answer.model for attempt in attempts}),
            "prompt_sha256": prompt.prompt_hash(),
            "sdk": f"anthropic {sdk}",
            "attempts": [f"candidate {a.candidate} round {a.round}: {a.outcome}" for a in attempts],
            **{kind: sum(answer.usage.get(kind, 0) for answer in answers) for kind in _TOKENS},
            "estimated_cost_usd": cost,
        }

    def write(self, name: str, document: Any) -> None:
        """Atomically, if there is a folder."""
        if self.folder is not None:
            atomic_write(self.folder / name, json.dumps(document, indent=1) + "\n")


def _cost(answers: Sequence[api.Answer]) -> float | None:
    """Dollars for answers; None if the price of one is not known."""
    costs = [answer.cost_usd for answer in answers if answer.cost_usd is not None]
    return sum(costs) if len(costs) == len(answers) else None


def output_schema() -> dict[str, Any]:
    """The spec's schema as the API wants it; bounds that its grammar cannot hold become descriptions, and are checked here."""
    import anthropic

    return anthropic.transform_schema(RewardSpec)


def _number(path: Path) -> int:
    """Which answer to a question a file holds: 1 for ``<name>.answer.json``, 2 for ``<name>.answer-2.json``."""
    match = re.search(r"\.answer(?:-([0-9]+))?\.json$", path.name)
    return int(match[1] or 1) if match else 0


def _read_answer(path: Path, question: str) -> api.Answer | None:
    """A kept answer; None if it is to another question, or was cut off. ValueError if the file is damaged."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return api.Answer(**kept["answer"]) if kept["question"] == question and kept["complete"] else None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is no kept answer, or damaged ({reason}): delete it and it is asked for again.") from error
