"""``sb3-tgrpo eval``: success rates by LIBERO's protocol."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_tgrpo.cli.flags import add_flags, given_settings
from sb3_tgrpo.cli.interrupt import interruptible

if TYPE_CHECKING:
    from sb3_tgrpo.evaluation.adapters import Policy
    from sb3_tgrpo.evaluation.protocol import EvalEpisode, Protocol
    from sb3_tgrpo.evaluation.results import Evaluation

RENAMED = {"--starts": "--init-state-ids", "--episodes-per-start": "--repetitions"}
_DESCRIPTION = (
    "LIBERO's protocol by default: the 50 stored initial states of each task, official step limits, greedy, every episode "
    "alone. The same command goes on after an interruption. --checkpoint upstream is the fine-tune that OpenVLA's authors "
    "published for the suite."
)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``eval``."""
    from sb3_tgrpo.evaluation.protocol import Protocol

    parser = subparsers.add_parser("eval", help="measure success rates; compare two policies", description=_DESCRIPTION)
    policy = parser.add_argument_group("policy (one of --checkpoint and --model)")
    which = policy.add_mutually_exclusive_group(required=True)
    which.add_argument("--checkpoint", help="hub id, folder in the upstream layout, 'tiny' or 'upstream'")
    which.add_argument("--model", type=Path, metavar="ZIP", help="saved TGRPO, DPO, TPO, PPO or A2C")
    policy.add_argument("--adapter", default=None, help="PEFT folder or hub id to merge into --checkpoint")
    policy.add_argument("--unnorm-key", default=None, help="action statistics, if the checkpoint has several")
    policy.add_argument("--dtype", default=None, help="float32 or bfloat16; default: by device")
    policy.add_argument("--quantization", choices=("4bit",), default=None)
    policy.add_argument("--device", default="auto")

    tasks = parser.add_argument_group("episodes")
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    tasks.add_argument("--env", **several, metavar="ID", help="such as libero_object-3")
    tasks.add_argument("--suite", **several, metavar="SUITE", help="all tasks of libero_object, ...")
    tasks.add_argument("--episodes", type=int, default=50, metavar="N", help="initial states per task (default %(default)s)")
    tasks.add_argument("--init-state-ids", type=int, nargs="+", metavar="K", help="these initial states, not the first N")
    tasks.add_argument("--drawn", action="store_true", help="initial states drawn with seeds 0, 1, ..., not stored ones")
    tasks.add_argument("--sampled", action="store_true", help="sample actions instead of taking the most likely ones")
    tasks.add_argument("--temperature", type=float, default=None, help="of --sampled; default: the policy's own")
    tasks.add_argument(
        "--assets", choices=("auto", "full", "light"), default=None, help="default: those that the policy was trained on"
    )
    tasks.add_argument("--image-size", type=int, default=None, help="pixels; default: what the policy was made for")
    tasks.add_argument("--reward", action="store_true", help="also report stages of the shipped reward programs")
    tasks.add_argument("--n-envs", type=int, default=2, help="environments at once, a process each (default %(default)s)")
    add_flags(tasks, Protocol)

    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=None, metavar="FOLDER", help="default: runs/eval/ and what is evaluated")
    output.add_argument("--video", type=_videos, default="failures", metavar="WHICH", help="failures, all, none or a number")
    output.add_argument("--compare", type=Path, default=None, metavar="JSON", help="evaluation.json of another policy")
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def _videos(text: str) -> str | int:
    if text in ("failures", "all", "none"):
        return text
    if text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not failures, all, none or a number")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print tables, write the run folder."""
    from sb3_tgrpo.evaluation.results import Evaluation

    before = None if args.compare is None else Evaluation.load(args.compare)
    env_ids = chosen_env_ids(args.env, args.suite)
    protocol = protocol_from(args, env_ids)
    check_policy(args, env_ids[0])
    with interruptible():
        evaluation, folder = _evaluate(args, env_ids, protocol)
    print(evaluation)
    if before is not None:
        from sb3_tgrpo.evaluation.comparison import paired_comparison
        from sb3_tgrpo.run_folder import RunFolder

        comparison = paired_comparison(before, evaluation)
        RunFolder(folder).write("comparison.json", comparison.to_dict())
        print(f"\n{comparison}")
    print(f"\n{folder}/evaluation.json")
    return 0


def _evaluate(args: argparse.Namespace, env_ids: Sequence[str], protocol: "Protocol") -> tuple["Evaluation", Path]:
    import torch as th
    from tqdm import tqdm

    from sb3_tgrpo.evaluation.adapters import sampled
    from sb3_tgrpo.evaluation.evaluate import evaluate_policy
    from sb3_tgrpo.evaluation.protocol import Execution
    from sb3_tgrpo.files import atomic_write
    from sb3_tgrpo.run_folder import RunFolder

    if not th.cuda.is_available():
        th.set_num_threads(1)  # the cores belong to the simulators
    policy = load_policy(args, env_ids[0])
    if _is_libero(env_ids):
        protocol = replace(protocol, env_kwargs=observed(policy, args.image_size, args.assets))
    if args.sampled and args.temperature is None:
        protocol = replace(protocol, decoding=sampled(policy))
    run = RunFolder(args.out or default_folder(args, env_ids, protocol))
    n_episodes = len(env_ids) * protocol.n_initial_states * protocol.repetitions
    successes: list[bool] = []

    def progress(episode: "EvalEpisode", n_done: int, n_all: int) -> None:
        successes.append(episode.success)
        bar.update(n_done - bar.n)
        bar.set_postfix_str(f"{sum(successes)}/{len(successes)} succeeded, {episode.task}")

    with run.locked(), tqdm(total=n_episodes, unit="episode", disable=args.quiet, desc="eval") as bar:
        evaluation = evaluate_policy(
            policy,
            with_rewards(env_ids) if args.reward else env_ids,
            protocol,
            folder=run.path,
            name=None if args.model is None else str(args.model),
            execution=Execution(n_envs=args.n_envs, videos=args.video, progress=progress),
        )
        run.write("command.json", {"command": shlex.join(["sb3-tgrpo", *sys.argv[1:]])})
        atomic_write(run / "report.txt", f"{evaluation}\n")
    return evaluation, run.path


def chosen_env_ids(env: Sequence[str], suites: Sequence[str]) -> list[str]:
    """Ids from ``--env`` and ``--suite``; an unknown one is refused."""
    import sb3_tgrpo  # noqa: F401  # registers LIBERO's ids
    from sb3_tgrpo.envs.registration import SUITES, env_ids
    from sb3_tgrpo.train.setup import check_task

    if unknown := [suite for suite in suites if suite not in SUITES]:
        raise ValueError(f"--suite {unknown[0]}: unknown. Available: {', '.join(SUITES)}.")
    if not (ids := env_ids([*env, *suites])):
        raise ValueError("Name what to evaluate on: --env LIBERO/libero_object-3-v0, or --suite libero_object.")
    for env_id in ids:
        check_task(env_id)
    if not _is_libero(ids) and any(env_id.startswith("LIBERO/") for env_id in ids):
        raise ValueError("--env: evaluate LIBERO's environments and others one after the other, they take other arguments.")
    return ids


def _is_libero(env_ids: Sequence[str]) -> bool:
    return all(env_id.startswith("LIBERO/") for env_id in env_ids)


def protocol_from(args: argparse.Namespace, env_ids: Sequence[str]) -> "Protocol":
    """The protocol that the arguments ask for; ``--sampled`` without a temperature is resolved with the policy."""
    from sb3_tgrpo.decoding import Decoding
    from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts
    from sb3_tgrpo.evaluation.protocol import Protocol
    from sb3_tgrpo.rewards.facts.task_name import TaskName

    if args.episodes < 1:
        raise ValueError(f"--episodes {args.episodes} must be at least 1.")
    if args.n_envs < 1:
        raise ValueError(f"--n-envs {args.n_envs} must be at least 1.")
    if not args.sampled and (args.temperature is not None or getattr(args, "repetitions", 1) != 1):
        raise ValueError("--temperature and --repetitions are for sampled actions: add --sampled, or leave them out.")
    if args.temperature == 0:
        raise ValueError("--temperature 0 is greedy: leave out --sampled and --temperature.")
    states = tuple(args.init_state_ids if args.init_state_ids is not None else range(args.episodes))
    if not _is_libero(env_ids):
        if not args.drawn:
            raise ValueError(f"--env {env_ids[0]} has no stored initial states, only LIBERO's have: add --drawn.")
        if given := [
            f"--{name.replace('_', '-')}" for name in ("reward", "start_noise", "image_size") if getattr(args, name, None)
        ]:
            raise ValueError(f"{', '.join(given)}: only for LIBERO's environments, not for {env_ids[0]}. Leave it out.")
    for env_id in env_ids if _is_libero(env_ids) and not args.drawn else ():
        count = len(stored_starts(get_task(*TaskName.parse(env_id))))
        if wrong := [k for k in states if not 0 <= k < count]:
            raise ValueError(f"init_state_ids={wrong}: {env_id} has {count} stored initial states, 0 to {count - 1}.")
    drawn = {"seeds": states} if args.drawn else {"init_state_ids": states}
    return Protocol(
        **drawn,  # type: ignore[arg-type]
        **given_settings(args, Protocol),
        decoding=Decoding((args.temperature or 1.0) if args.sampled else 0.0),
    )


def check_policy(args: argparse.Namespace, env_id: str) -> None:
    """Refuse a policy that can't be evaluated, as far as its files record it, before anything is loaded."""
    from sb3_tgrpo.envs.libero.assets import resolve_assets
    from sb3_tgrpo.evaluation.results import suite_of

    if args.model is not None:
        if args.adapter is not None:
            raise ValueError(f"--adapter {args.adapter} is merged into --checkpoint: leave it out, a --model holds its own.")
        if not args.model.is_file():
            raise ValueError(f"--model {args.model}: there is no such file.")
        return
    checkpoint = checkpoint_from(args, env_id)
    if checkpoint.is_hub_id:
        return  # its files may have to be downloaded
    if checkpoint.statistics:  # tiny's are made with the policy
        checkpoint.unnorm_key(args.unnorm_key, suite_of(env_id) if _is_libero([env_id]) else None)
    if _is_libero([env_id]):
        if args.adapter is None:  # which may have been trained on others
            assets = args.assets or checkpoint.default_assets
            checkpoint.check_assets(resolve_assets(assets).kind, assets != "auto")
        if args.image_size is not None:
            checkpoint.conventions.check_image_size(args.image_size, args.image_size, f"the checkpoint {checkpoint}")


def checkpoint_from(args: argparse.Namespace, env_id: str) -> Any:
    """The checkpoint that ``--checkpoint`` names."""
    from sb3_tgrpo.evaluation.results import suite_of
    from sb3_tgrpo.openvla.checkpoint import Checkpoint, upstream_checkpoint

    return Checkpoint(upstream_checkpoint(suite_of(env_id)) if args.checkpoint == "upstream" else args.checkpoint)


def load_policy(args: argparse.Namespace, env_id: str) -> "Policy":
    """The policy that the arguments describe, made for the spaces of ``env_id``."""
    if args.model is not None:
        return load_algorithm(args.model, args.device)
    import gymnasium as gym

    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

    checkpoint = checkpoint_from(args, env_id)
    kwargs = checkpoint.env_kwargs(args.image_size, args.assets) if _is_libero([env_id]) else {}
    with closing(gym.make(env_id, **kwargs)) as env:
        return OpenVLAPolicy.for_env(
            env, checkpoint, unnorm_key=args.unnorm_key, lora="language" if args.quantization else None,
            adapter=args.adapter, dtype=args.dtype, device=args.device, quantization=args.quantization, vision_cache_mb=0,
        )  # fmt: skip


def load_algorithm(path: Path, device: str) -> Any:
    """A saved algorithm, recognised by its settings."""
    import zipfile

    from stable_baselines3.common.save_util import load_from_zip_file

    try:
        data, _, _ = load_from_zip_file(path, device="cpu", load_data=True)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"--model {path} is not a saved algorithm: {error!r}.") from error
    algorithm = _saved_class(data or {})
    if algorithm is None:
        raise ValueError(f"--model {path}: only TGRPO, DPO, TPO, PPO and A2C are known here. Use evaluate_policy in Python.")
    return algorithm.load(path, device=device)


def _saved_class(settings: dict[str, Any]) -> Any:
    """The algorithm that has these settings; None if it is an unknown one."""
    from stable_baselines3 import A2C, PPO

    from sb3_tgrpo.baselines.preferences import DPO, TPO
    from sb3_tgrpo.tgrpo import TGRPO

    if "alpha_step" in settings:
        return {"DPO": DPO, "TPO": TPO}.get(settings.get("saved_objective", ""), TGRPO)
    # sb3-contrib's algorithms share settings with these: TRPO differs by its own ones, the others by their policies.
    contrib = str(getattr(settings.get("policy_class"), "__module__", "")).startswith("sb3_contrib")
    if contrib or "cg_max_steps" in settings:
        return None
    if "clip_range_vf" in settings:
        return PPO
    return A2C if "normalize_advantage" in settings and "gae_lambda" in settings else None


def observed(policy: "Policy", image_size: int | None, assets: str | None) -> dict[str, Any]:
    """Keyword arguments with which an environment shows what the policy was made for; ``assets`` may be others."""
    from gymnasium import spaces

    space = policy.observation_space
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    pictures = [part for name, part in parts.items() if name.endswith("image")]
    kwargs: dict[str, Any] = {"observations": [name for name in parts if name != "instruction"]} if parts else {}
    kwargs["assets"] = assets or getattr(parts.get("instruction"), "assets", None) or "auto"
    if pictures:
        size = sorted(pictures[0].shape or ())[-1]  # channels first or last
        if image_size not in (None, size):
            raise ValueError(f"--image-size {image_size}: the policy was made for {size}.")
        kwargs["image_size"] = int(size)
    return kwargs


def with_rewards(env_ids: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Functions that make LIBERO's environments with their shipped rewards, by task."""
    import gymnasium as gym

    from sb3_tgrpo.evaluation.results import task_name
    from sb3_tgrpo.rewards import load_reward

    return {task_name(name): partial(gym.make, name, reward=load_reward(task_name(name))) for name in env_ids}


def default_folder(args: argparse.Namespace, env_ids: Sequence[str], protocol: "Protocol") -> Path:
    """A folder named after what is evaluated, so that the same command finds it again."""
    from sb3_tgrpo.evaluation.results import task_name

    policy = Path(args.model).stem if args.model is not None else Path(args.checkpoint).name
    if args.adapter is not None:
        policy += f"+{Path(args.adapter).name}"
    tasks = "+".join(args.suite + [task_name(env_id) for env_id in args.env])
    how = f"sampled{args.temperature or ''}-seed{protocol.seed}" if args.sampled else "greedy"
    kind = ("-drawn" if args.drawn else "") + ("-official" if protocol.official_order else "")
    noise = f"-noise{protocol.start_noise:g}" if protocol.start_noise else ""
    return Path("runs/eval") / f"{policy}-{tasks.replace('/', '_')}-{how}{kind}{noise}"
