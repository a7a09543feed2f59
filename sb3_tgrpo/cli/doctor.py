"""``sb3-tgrpo doctor``: checks of what silently ruins results."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import gymnasium as gym

from sb3_tgrpo.cli.flags import add_flag
from sb3_tgrpo.train.config import TaskConfig

if TYPE_CHECKING:
    from sb3_tgrpo.doctor.finding import Finding
    from sb3_tgrpo.evaluation.base_policy import BasePolicyReport

RENAMED = {
    "--starts": "--n-initial-states", "--batch-size": "--micro-batch-size", "--n-groups": "--parallel-groups",
}  # fmt: skip

GROUP_SIZE = 4
"""Sampled episodes per initial state of a base policy."""

_DESCRIPTION = (
    "Checks libraries, simulator, assets, checkpoint and policy, and names a remedy for each failure. Exit status 0: no "
    "check failed. Nothing is downloaded or changed."
)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``doctor``."""
    from sb3_tgrpo.doctor.finding import MemoryPlan

    parser = subparsers.add_parser(
        "doctor", help="check the installation, a checkpoint, a base policy", description=_DESCRIPTION
    )
    parser.add_argument("--env", default="LIBERO/libero_object-0-v0", metavar="ID", help="task to check (default %(default)s)")
    parser.add_argument(
        "--assets", choices=("auto", "full", "light"), default=None, help="default: those that the checkpoint was trained on"
    )
    parser.add_argument("--checkpoint", default=None, help="hub id, folder or 'tiny' to check as well")
    parser.add_argument("--unnorm-key", default=None, help="action statistics meant to be used")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")

    plan = parser.add_argument_group("memory of a planned run (--plan)")
    plan.add_argument("--plan", action="store_true", help="estimate the memory of training --checkpoint")
    hints = get_type_hints(MemoryPlan)
    for each in fields(MemoryPlan):
        add_flag(plan, each.name, hints[each.name], each.default, each.metadata["help"])

    base = parser.add_argument_group("can training improve a base policy? (--policy)")
    base.add_argument("--policy", default=None, metavar="CHECKPOINT", help="play it: greedy, sampled, entropy, mixed groups")
    base.add_argument("--n-initial-states", type=int, default=20, metavar="N", help="initial states (default %(default)s)")
    base.add_argument("--stored", action="store_true", help="LIBERO's stored initial states instead of drawn ones")
    base.add_argument("--start-noise", type=float, default=0.0, metavar="METRES", help="widen them, stored ones too")
    base.add_argument(
        "--joint-noise", type=float, default=TaskConfig.joint_noise, metavar="RADIANS",
        help="spread of the arm's joints in drawn initial states (default %(default)s, as in training)",
    )  # fmt: skip
    base.add_argument("--temperature", type=float, default=1.0)
    base.add_argument("--n-envs", type=int, default=2, help="environments at once (default %(default)s)")
    base.add_argument("--seed", type=int, default=0, help="seed of sampling, and of the noise on stored initial states")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check and print; the exit status is 1 if a check failed."""
    from sb3_tgrpo.doctor.checks import run_checks
    from sb3_tgrpo.doctor.finding import DoctorContext, MemoryPlan, all_passed, to_dict

    given = {each.name: getattr(args, each.name) for each in fields(MemoryPlan) if hasattr(args, each.name)}
    plan = MemoryPlan(**given) if args.plan else None
    checkpoint = args.checkpoint if args.checkpoint is not None else args.policy
    findings = run_checks(DoctorContext(args.env, args.assets, checkpoint, args.unnorm_key, args.device, plan))
    result = to_dict(findings)
    report = None
    if args.policy is not None and all_passed(findings):
        report = describe(args)
        result["start_policy"] = report.to_dict()
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print_findings(findings)
        if report is not None:
            print(f"\n{Path(args.policy).name} as a base policy for training\n{report}")
    return 0 if all_passed(findings) else 1


def describe(args: argparse.Namespace) -> "BasePolicyReport":
    """The numbers of the base policy ``--policy``."""
    import torch as th

    from sb3_tgrpo.decoding import Decoding
    from sb3_tgrpo.evaluation.base_policy import describe_base_policy
    from sb3_tgrpo.evaluation.protocol import Protocol
    from sb3_tgrpo.openvla.checkpoint import Checkpoint
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

    if not th.cuda.is_available():
        th.set_num_threads(1)  # the cores belong to the simulators
    checkpoint = Checkpoint(args.policy)
    make = env_maker_of(args, checkpoint.env_kwargs(assets=args.assets))
    env = make()
    policy = OpenVLAPolicy.for_env(env, checkpoint, unnorm_key=args.unnorm_key, device=args.device)
    env.close()
    states: dict[str, Any] = {"init_state_ids" if args.stored else "seeds": range(args.n_initial_states)}
    if args.stored:
        states["start_noise"] = args.start_noise  # of drawn ones it is the environment's
    protocol = Protocol(**states, repetitions=GROUP_SIZE, decoding=Decoding(args.temperature), seed=args.seed)
    return describe_base_policy(policy, make, protocol, n_envs=args.n_envs)


def env_maker_of(args: argparse.Namespace, shown: dict[str, Any]) -> Callable[[], gym.Env]:
    """A function that makes the environment, its initial states widened as in training and in evaluations."""
    from sb3_tgrpo.envs.registration import env_id
    from sb3_tgrpo.evaluation.player import env_maker

    drawn = {} if args.stored else {"start_noise": args.start_noise, "joint_noise": args.joint_noise}
    return env_maker(env_id(args.env), {**shown, **drawn})


_COLOURS = {"ok": "green", "failed": "red", "note": "yellow", "not checked": "dim"}


def print_findings(findings: "Sequence[Finding]") -> None:
    """A row per check, remedies under the failed ones."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("check", "status", "found", show_lines=False)
    for finding in findings:
        colour = _COLOURS[finding.status]
        remedy = f"\n[bold]remedy:[/] {escape(finding.remedy)}" if finding.remedy else ""
        table.add_row(finding.check, f"[{colour}]{finding.status}[/]", escape(finding.found) + remedy)
    console = Console()
    console.print(table)
    failed = sum(finding.status == "failed" for finding in findings)
    console.print(f"{failed} of {len(findings)} checks failed" if failed else "no check failed")
