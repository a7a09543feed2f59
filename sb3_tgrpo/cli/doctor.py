"""``sb3-tgrpo doctor``: checks of what silently ruins results."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from sb3_tgrpo.train.config import TaskConfig

if TYPE_CHECKING:
    from sb3_tgrpo.doctor.checks import Finding
    from sb3_tgrpo.evaluation.base_policy import BasePolicyReport

_DESCRIPTION = (
    "Checks libraries, simulator, assets, checkpoint and policy, and says what to do about each failure. Exit status 0: no "
    "check failed. Nothing is downloaded or changed."
)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``doctor``."""
    parser = subparsers.add_parser(
        "doctor", help="check the installation, a checkpoint, a start policy", description=_DESCRIPTION
    )
    parser.add_argument("--env", default="LIBERO/libero_object-0-v0", metavar="ID", help="task to check (default %(default)s)")
    parser.add_argument("--assets", choices=("auto", "full", "light"), default="auto")
    parser.add_argument("--checkpoint", default=None, help="hub id, folder or 'tiny' to check as well")
    parser.add_argument("--unnorm-key", default=None, help="action statistics meant to be used")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")

    plan = parser.add_argument_group("memory of a planned run (--plan)")
    plan.add_argument("--plan", action="store_true", help="estimate the memory of training --checkpoint")
    plan.add_argument("--group-size", type=int, default=4)
    plan.add_argument("--n-groups", type=int, default=1)
    plan.add_argument("--batch-size", type=int, default=8, help="steps per backward pass, micro_batch_size (default 8)")
    plan.add_argument("--lora", default="language", help="language, upstream or none (default %(default)s)")
    plan.add_argument("--dtype", default=None, help="float32 or bfloat16; default: by device")
    plan.add_argument("--quantization", choices=("4bit",), default=None)
    plan.add_argument("--gradient-checkpointing", action="store_true")

    start = parser.add_argument_group("is a policy a good start for training? (--policy)")
    start.add_argument("--policy", default=None, metavar="CHECKPOINT", help="play it: greedy, sampled, entropy, mixed groups")
    start.add_argument("--starts", type=int, default=20, help="number of starts (default %(default)s)")
    start.add_argument("--stored", action="store_true", help="LIBERO's stored starts instead of drawn ones")
    start.add_argument("--start-noise", type=float, default=0.0, metavar="METRES", help="widen the starts, stored ones too")
    start.add_argument(
        "--joint-noise", type=float, default=TaskConfig.joint_noise, metavar="RADIANS",
        help="by which the arm's joints vary in drawn starts (default %(default)s, as in training)",
    )  # fmt: skip
    start.add_argument("--temperature", type=float, default=1.0)
    start.add_argument("--n-envs", type=int, default=2, help="environments at once (default %(default)s)")
    start.add_argument("--seed", type=int, default=0, help="of sampling, and of the noise on stored starts")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, print, and say by the exit status whether something failed."""
    from sb3_tgrpo.doctor.checks import Plan, Subject, examine, healthy, to_dict

    plan = None
    if args.plan:
        lora = None if args.lora == "none" else args.lora
        plan = Plan(
            args.group_size, args.n_groups, args.batch_size, None, lora, args.dtype, args.quantization,
            args.gradient_checkpointing,
        )  # fmt: skip
    checkpoint = args.checkpoint if args.checkpoint is not None else args.policy
    subject = Subject(args.env, args.assets, checkpoint, args.unnorm_key, args.device, plan)
    findings = examine(subject)
    result = to_dict(findings)
    report = None
    if args.policy is not None and healthy(findings):
        report = describe(args)
        result["start_policy"] = report.to_dict()
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print_findings(findings)
        if report is not None:
            print(f"\n{Path(args.policy).name} as a start for training\n{report}")
    return 0 if healthy(findings) else 1


def describe(args: argparse.Namespace) -> "BasePolicyReport":
    """The numbers of a start policy, of ``--policy``."""
    import torch as th
    from stable_baselines3.common.utils import FloatSchedule

    from sb3_tgrpo.decoding import Decoding
    from sb3_tgrpo.evaluation.base_policy import describe_base_policy
    from sb3_tgrpo.evaluation.protocol import Protocol
    from sb3_tgrpo.openvla.checkpoint import read_config
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

    if not th.cuda.is_available():
        th.set_num_threads(1)  # the cores belong to the simulators
    size = 256 if read_config(args.policy).pipeline == "libero" else 128
    make = start_maker(args, size)
    env = make()
    policy = OpenVLAPolicy(
        env.observation_space, env.action_space, FloatSchedule(0.0), checkpoint=args.policy, unnorm_key=args.unnorm_key,
        lora=None, value_head=False, device=args.device,
    )  # fmt: skip
    env.close()
    states: dict[str, Any] = {"init_state_ids" if args.stored else "seeds": tuple(range(args.starts))}
    protocol = Protocol(**states, repetitions=4, decoding=Decoding(args.temperature), seed=args.seed)
    return describe_base_policy(policy, make, protocol, n_envs=args.n_envs)


def start_maker(args: argparse.Namespace, image_size: int) -> Callable[[], gym.Env]:
    """A function that makes the environment with the starts asked for, widened as in training and in evaluations."""
    from sb3_tgrpo.evaluation.player import env_maker

    kwargs: dict[str, Any] = {"assets": args.assets, "image_size": image_size}
    if not args.stored:
        return env_maker(args.env, {**kwargs, "start_noise": args.start_noise, "joint_noise": args.joint_noise})
    make = env_maker(args.env, kwargs)
    return (lambda: WidenedStoredStarts(make(), args.start_noise, args.seed)) if args.start_noise else make


class WidenedStoredStarts(gym.Wrapper):
    """
    Adds noise to stored starts, for which LIBERO's environment has reset options: its own ``start_noise`` is of drawn starts.

    :param env: LIBERO environment, to be reset to stored starts.
    :param start_noise: metres.
    :param noise_seed: of the noise.
    """

    def __init__(self, env: gym.Env, start_noise: float, noise_seed: int) -> None:
        super().__init__(env)
        self.noise = {"start_noise": start_noise, "noise_seed": noise_seed}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options={**(options or {}), **self.noise})


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
