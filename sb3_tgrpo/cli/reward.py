"""``sb3-tgrpo reward``: generate, verify and show rewards."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sb3_tgrpo.rewards.facts.task_name import TaskName
from sb3_tgrpo.rewards.program.level import Payment

if TYPE_CHECKING:
    from sb3_tgrpo.rewards.verification.report import VerificationReport

PAYMENTS = get_args(Payment)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``reward`` with its three actions."""
    parser = subparsers.add_parser(
        "reward",
        help="multi-stage rewards: generate, verify, show",
        description="Multi-stage rewards. Forty ship with the package; docs/rewards.md explains them.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    generate = actions.add_parser(
        "generate",
        help="have a language model write rewards; needs ANTHROPIC_API_KEY",
        description="Have a language model write rewards and verify them. Answers are kept; a stopped run goes on. "
        "Costs money: ANTHROPIC_API_KEY is read from the environment. Exit status 1 if a task gets no verified reward.",
    )
    generate.add_argument("tasks", nargs="+", metavar="TASK", help="libero_object-3, or a suite such as libero_object")
    out = Path("rewards-generated")
    generate.add_argument("--out", type=Path, default=out, help=f"folder, one sub-folder per task ({out})")
    generate.add_argument("--model", default=None, help="model id; default SB3_TGRPO_MODEL or the package's default")
    generate.add_argument("--candidates", type=int, default=2, help="independent attempts per task (2)")
    generate.add_argument("--max-rounds", type=int, default=3, help="answers per candidate (3)")
    generate.add_argument("--deadline", type=float, default=1800.0, help="seconds per task to wait for the API (1800)")
    generate.add_argument("--stream", action="store_true", help="ask for streamed answers")
    generate.add_argument("--payment", choices=PAYMENTS, default="latched", help="how the level is paid (latched)")
    generate.add_argument("--again", action="store_true", help="ask anew, whatever results and answers are there")
    generate.add_argument("--plots", type=Path, default=None, metavar="FOLDER", help="write a histogram of rejections there")
    generate.set_defaults(run=run_generate)

    verify = actions.add_parser(
        "verify",
        help="run the checks V1 to V20 on recorded episodes",
        description="Run the checks V1 to V20 on recorded episodes: a table for one reward, a line each for several. "
        "Exit status 1 if a hard check fails.",
    )
    verify.add_argument("rewards", nargs="*", metavar="REWARD", help="task, suite, or path to a spec; default: all shipped")
    verify.add_argument("--payment", choices=PAYMENTS, default="latched", help="how the level is paid (latched)")
    verify.add_argument("--traces", type=Path, metavar="FILE", help=".npz of episodes instead of the shipped ones")
    verify.add_argument("--mutation", action="store_true", help="also the mutation score, some seconds per task")
    verify.add_argument("--plots", type=Path, metavar="FOLDER", help="write plots there; of mutants, too, with --mutation")
    verify.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the reports there")
    verify.add_argument("--seed", type=int, default=0, help="of random states and perturbations (0)")
    verify.set_defaults(run=run_verify)

    show = actions.add_parser("show", help="print a reward", description="Print a reward as readable Python, or otherwise.")
    show.add_argument("reward", metavar="REWARD", help="task or path to a spec")
    show.add_argument(
        "--format",
        choices=("python", "json", "report", "facts"),
        default="python",
        help="the reward as Python or JSON, its shipped report, or what its author was told about the task (python)",
    )
    show.set_defaults(run=run_show)


def expand(names: list[str]) -> list[str]:
    """Tasks and paths as they are, a suite as its tasks, nothing as all tasks."""
    from sb3_tgrpo.rewards.facts.task_facts import available_tasks

    tasks = available_tasks()
    if not names:
        return tasks
    expanded = []
    for name in names:
        suite = [task for task in tasks if TaskName.parse(task).suite == name]
        expanded += suite or [name]
    return expanded


def run_generate(args: argparse.Namespace) -> int:
    """One task after the other; finished ones are skipped, so that a stopped run goes on where it was."""
    from sb3_tgrpo.run_folder import RunFolder

    tasks = expand(args.tasks)
    with RunFolder(args.out).locked():  # answers cost money: not twice the same
        failed = _generate(args, tasks)
    if args.plots is not None:
        from sb3_tgrpo.rewards.verification.plots import plot_rejects

        print(f"  {plot_rejects(args.out, args.plots / 'rejections.png')}")
    return 1 if failed else 0


def _generate(args: argparse.Namespace, tasks: list[str]) -> int:
    """How many tasks ended without a verified reward."""
    from sb3_tgrpo.rewards.facts.errors import RewardError
    from sb3_tgrpo.rewards.generation.api import FatalAPIError
    from sb3_tgrpo.rewards.generation.generate import generate_reward

    failed = 0
    for task in tasks:
        folder = args.out / task
        if (folder / "result.json").is_file() and not args.again:
            print(f"{task}: there is a result in {folder}; --again writes a new one")
            continue
        try:
            made = generate_reward(
                task,
                model=args.model,
                candidates=args.candidates,
                max_rounds=args.max_rounds,
                out=folder,
                payment=args.payment,
                deadline=args.deadline,
                stream=args.stream,
                again=args.again,
                tell=lambda text, task=task: print(f"{task}: {text}", file=sys.stderr, flush=True),  # type: ignore[misc]
            )
        except FatalAPIError:
            raise
        except RewardError as error:
            failed += 1
            print(f"{task}: no verified reward\n{error}", file=sys.stderr)
            continue
        cost = "unknown" if made.cost_usd is None else f"${made.cost_usd:.3f}"
        answers = "1 answer" if len(made.attempts) == 1 else f"{len(made.attempts)} answers"
        print(f"{task}: verified after {answers}, margin {made.report.margin:.2f}, estimated cost {cost}")
        print(f"  {folder / 'spec.json'}")
    return failed


def run_verify(args: argparse.Namespace) -> int:
    """A full table for one reward, a line each for several."""
    from sb3_tgrpo.rewards import load_reward, load_task_facts, load_traces, verify_reward
    from sb3_tgrpo.rewards.episodes.kinematic import task_traces

    _check_files(args)
    reports: list[VerificationReport] = []
    names = expand(args.rewards)
    for name in names:
        program = load_reward(name, payment=args.payment)
        traces = load_traces(args.traces) if args.traces else task_traces(load_task_facts(program.task))
        report = verify_reward(program, traces, mutation=args.mutation, seed=args.seed)
        reports.append(report)
        if len(names) == 1:
            print(report.table())
        else:
            failed = " ".join(report.failed) or "passed"
            sources = ",".join(report.trace_sources)
            cost = report["V19"].numbers.get("p50 us", float("nan"))
            print(f"{report.task:<18} {failed:<24} margin {report.margin:6.3f}  {cost:5.1f} us/call  {sources}", flush=True)
        if args.plots is not None:
            from sb3_tgrpo.rewards.verification.plots import plot_report

            mutation = report["V20"] if args.mutation else None
            for path in plot_report(program, traces, args.plots, mutation=mutation):
                print(f"  {path}")
    if args.json is not None:
        args.json.write_text(json.dumps([report.to_dict() for report in reports], indent=1) + "\n", encoding="utf-8")
    passed = sum(report.passed for report in reports)
    if len(names) > 1:
        print(f"{passed} of {len(reports)} pass every hard check under {args.payment}")
    return 0 if passed == len(reports) else 1


def _check_files(args: argparse.Namespace) -> None:
    """Before checks that may take minutes."""
    if args.traces is not None and args.traces.suffix != ".npz":
        raise ValueError(f"--traces {args.traces}: episodes are in a .npz file, as save_traces writes it.")
    if args.json is not None and args.json.is_dir():
        raise ValueError(f"--json {args.json} is a folder: name a file in it, such as {args.json / 'report.json'}.")
    if args.json is not None and not args.json.parent.is_dir():
        raise ValueError(f"--json {args.json}: there is no folder {args.json.parent}; make it, or name a file elsewhere.")


def run_show(args: argparse.Namespace) -> int:
    """A reward as Python, as JSON, its shipped report, or the facts that its author had."""
    from sb3_tgrpo.rewards import load_reward
    from sb3_tgrpo.rewards.episodes.kinematic import task_traces
    from sb3_tgrpo.rewards.episodes.measure import measure
    from sb3_tgrpo.rewards.facts.task_facts import data_folder, load_task_facts
    from sb3_tgrpo.rewards.generation.prompt import facts_block

    program = load_reward(args.reward)
    if args.format == "python":
        print(program.to_python(), end="")
    elif args.format == "json":
        assert program.spec is not None
        print(program.spec.to_json(), end="")
    elif args.format == "facts":
        facts = load_task_facts(program.task)
        print(facts_block(facts, measure(facts, task_traces(facts))))
    else:
        report = data_folder("reports") / f"{program.task}.json"
        if not report.is_file():
            raise ValueError(f"no report ships for {program.task}; `sb3-tgrpo reward verify {args.reward}` makes one.")
        print(report.read_text(encoding="utf-8"), end="")
    return 0
