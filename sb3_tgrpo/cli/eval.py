"""``sb3-tgrpo eval``: success rates by LIBERO's protocol."""

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_tgrpo.evaluation.protocol import EvalEpisode, Evaluation, Policy

_DESCRIPTION = (
    "LIBERO's protocol by default: the 50 stored starts of each task, official step caps, greedy, every episode alone. The "
    "same command goes on after an interruption. --checkpoint upstream is the fine-tune that OpenVLA's authors published for "
    "the suite."
)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``eval``."""
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
    tasks.add_argument("--env", nargs="+", action="extend", default=[], metavar="ID", help="such as LIBERO/libero_object-3-v0")
    tasks.add_argument(
        "--suite", nargs="+", action="extend", default=[], metavar="SUITE", help="all tasks of libero_object, ..."
    )
    tasks.add_argument("--episodes", type=int, default=50, metavar="N", help="starts per task (default %(default)s)")
    tasks.add_argument("--starts", type=int, nargs="+", default=None, metavar="K", help="these starts instead of the first N")
    tasks.add_argument("--drawn", action="store_true", help="starts drawn with seeds 0, 1, ... instead of stored ones")
    tasks.add_argument("--start-noise", type=float, default=0.0, metavar="METRES", help="widen the starts")
    tasks.add_argument(
        "--official-order", action="store_true", help="replay OpenVLA's loop: fixtures as its resets place them"
    )
    tasks.add_argument("--sampled", action="store_true", help="sample actions instead of taking the most likely ones")
    tasks.add_argument("--temperature", type=float, default=None, help="of --sampled; default: the policy's own")
    tasks.add_argument("--episodes-per-start", type=int, default=1, metavar="N", help="for --sampled")
    tasks.add_argument("--assets", choices=("auto", "full", "light"), default="auto")
    tasks.add_argument("--image-size", type=int, default=None, help="pixels; default: what the policy was made for")
    tasks.add_argument("--reward", action="store_true", help="also report stages of the shipped reward programs")
    tasks.add_argument("--seed", type=int, default=0, help="of sampling and start noise (default %(default)s)")
    tasks.add_argument("--n-envs", type=int, default=2, help="environments at once, a process each (default %(default)s)")
    tasks.add_argument("--batch-size", type=int, default=None, help="observations per forward pass; default: 4, on CUDA 8")

    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=None, metavar="FOLDER", help="default: runs/eval/ and what is evaluated")
    output.add_argument("--video", type=_record, default="failures", metavar="WHICH", help="failures, all, none or a number")
    output.add_argument("--compare", type=Path, default=None, metavar="JSON", help="evaluation.json of another policy")
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def _record(text: str) -> str | int:
    if text in ("failures", "all", "none"):
        return text
    if text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not failures, all, none or a number")


def run(args: argparse.Namespace) -> int:
    """Evaluate, print tables, write the run folder."""
    import torch as th

    from sb3_tgrpo.evaluation.protocol import Evaluation, policy_name, resumable_evaluation
    from sb3_tgrpo.evaluation.results import write_json
    from sb3_tgrpo.files import atomic_write
    from sb3_tgrpo.run_folder import RunFolder

    before = None if args.compare is None else Evaluation.load(args.compare)
    env_ids = chosen_env_ids(args.env, args.suite)
    if args.episodes < 1:
        raise ValueError(f"--episodes must be at least 1, got {args.episodes}.")
    if not args.sampled and (args.temperature is not None or args.episodes_per_start != 1):
        raise ValueError("--temperature and --episodes-per-start are for sampled actions: add --sampled, or leave them out.")
    if args.model is not None and args.adapter is not None:
        raise ValueError(f"--adapter {args.adapter} is merged into --checkpoint: leave it out, a --model holds its own.")
    if not (libero := all(env_id.startswith("LIBERO/") for env_id in env_ids)):
        _check_others(args, env_ids)
    starts = args.starts if args.starts is not None else list(range(args.episodes))
    if not th.cuda.is_available():
        th.set_num_threads(1)  # the cores belong to the simulators
    policy = load_policy(args, env_ids[0])
    env_kwargs = {"assets": args.assets, **observed(policy, args.image_size)} if libero else {}
    folder = args.out or default_folder(args, env_ids)
    settings: dict[str, Any] = {
        "init_state_ids": starts,
        "seeds": starts if args.drawn else None,
        "episodes_per_start": args.episodes_per_start,
        "deterministic": not args.sampled,
        "temperature": args.temperature,
        "seed": args.seed,
        "start_noise": args.start_noise,
        "official_order": args.official_order,
        "env_kwargs": env_kwargs,
        "name": policy_name(policy) if args.model is None else str(args.model),
        "batch_size": args.batch_size,
    }
    n_episodes = len(env_ids) * len(starts) * args.episodes_per_start
    with RunFolder(folder).locked(), _bar(args.quiet, n_episodes) as progress:
        evaluation = resumable_evaluation(
            folder, policy, _with_rewards(env_ids) if args.reward else env_ids, **settings,
            n_envs=args.n_envs, record=args.video, progress=progress,
        )  # fmt: skip
    write_json(folder / "command.json", {"command": shlex.join(["sb3-tgrpo", *sys.argv[1:]])})
    atomic_write(folder / "report.txt", f"{evaluation}\n")
    print_evaluation(evaluation)
    if before is not None:
        from sb3_tgrpo.evaluation.protocol import paired_comparison

        comparison = paired_comparison(before, evaluation)
        write_json(folder / "comparison.json", comparison.to_dict())
        print(f"\n{comparison}")
    print(f"\n{folder}/evaluation.json")
    return 0


def chosen_env_ids(env: list[str], suites: list[str]) -> list[str]:
    """
    Ids from ``--env`` and ``--suite``.

    :raises ValueError: Without any, or with an unknown suite.
    """
    from sb3_tgrpo.envs.registration import SUITES, env_id, gym_id

    if unknown := [suite for suite in suites if suite not in SUITES]:
        raise ValueError(f"--suite {unknown[0]}: unknown. Available: {', '.join(SUITES)}.")
    ids = [*map(env_id, env), *(gym_id(suite, task) for suite in suites for task in range(SUITES[suite]))]
    if not ids:
        raise ValueError("Name what to evaluate on: --env LIBERO/libero_object-3-v0, or --suite libero_object.")
    return list(dict.fromkeys(ids))


def _check_others(args: argparse.Namespace, env_ids: list[str]) -> None:
    """
    :raises ValueError: where environments that are not LIBERO's are asked for what only these have.
    """
    if any(env_id.startswith("LIBERO/") for env_id in env_ids):
        raise ValueError("--env: evaluate LIBERO's environments and others one after the other, they take other arguments.")
    if not args.drawn:
        raise ValueError(f"--env {env_ids[0]} has no stored starts, only LIBERO's have: add --drawn.")
    given = [name for name in ("reward", "start_noise", "image_size") if getattr(args, name)]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{flags}: {env_ids[0]} is none of LIBERO's environments, which have it: leave it out.")


def load_policy(args: argparse.Namespace, env_id: str) -> "Policy":
    """The policy that the arguments describe, made for the spaces of ``env_id``."""
    if args.model is not None:
        return load_algorithm(args.model, args.device)
    import gymnasium as gym
    from stable_baselines3.common.utils import FloatSchedule

    from sb3_tgrpo.openvla.checkpoint import read_config
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

    checkpoint = None if args.checkpoint == "upstream" else args.checkpoint
    size = args.image_size
    if size is None:
        size = 256 if checkpoint is None or read_config(checkpoint).pipeline == "libero" else 128
    env = gym.make(env_id, assets=args.assets, image_size=size) if env_id.startswith("LIBERO/") else gym.make(env_id)
    try:
        return OpenVLAPolicy(
            env.observation_space, env.action_space, FloatSchedule(0.0), checkpoint=checkpoint, unnorm_key=args.unnorm_key,
            lora="language" if args.quantization else None, value_head=False, adapter=args.adapter, dtype=args.dtype,
            device=args.device, quantization=args.quantization, vision_cache_mb=0,
        )  # fmt: skip
    finally:
        env.close()


def load_algorithm(path: Path, device: str) -> Any:
    """
    A saved algorithm; which one is read off its settings.

    :raises ValueError: If the file is none, or another algorithm's.
    """
    import zipfile

    from stable_baselines3.common.save_util import load_from_zip_file

    if not path.is_file():
        raise ValueError(f"--model {path}: there is no such file.")
    try:
        data, _, _ = load_from_zip_file(path, device="cpu", load_data=True)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"--model {path} is not a saved algorithm: {error!r}.") from error
    algorithm = _saved_class(data or {})
    if algorithm is None:
        raise ValueError(
            f"--model {path}: only TGRPO, DPO, TPO, PPO and A2C are known here. Use sb3_tgrpo.evaluation.protocol in Python."
        )
    return algorithm.load(path, device=device)


def _saved_class(settings: dict[str, Any]) -> Any:
    """The algorithm that has these settings; None if it is none of those known here."""
    from stable_baselines3 import A2C, PPO

    from sb3_tgrpo.baselines.preferences import DPO, TPO
    from sb3_tgrpo.tgrpo import TGRPO

    if "alpha_step" in settings:
        return {"DPO": DPO, "TPO": TPO}.get(settings.get("saved_objective", ""), TGRPO)
    # sb3-contrib's algorithms share settings with these: TRPO is told by its own, the others by their policies.
    contrib = str(getattr(settings.get("policy_class"), "__module__", "")).startswith("sb3_contrib")
    if contrib or "cg_max_steps" in settings:
        return None
    if "clip_range_vf" in settings:
        return PPO
    return A2C if "normalize_advantage" in settings and "gae_lambda" in settings else None


def observed(policy: "Policy", image_size: int | None) -> dict[str, Any]:
    """Keyword arguments with which an environment shows what the policy was made for."""
    from gymnasium import spaces

    space = policy.observation_space
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    pictures = [part for name, part in parts.items() if name.endswith("image")]
    kwargs: dict[str, Any] = {"observations": [name for name in parts if name != "instruction"]} if parts else {}
    if pictures:
        size = sorted(pictures[0].shape or ())[-1]  # channels first or last
        if image_size not in (None, size):
            raise ValueError(f"--image-size {image_size}: the policy was made for {size}.")
        kwargs["image_size"] = int(size)
    return kwargs


def _with_rewards(env_ids: list[str]) -> dict[str, Callable[..., Any]]:
    from sb3_tgrpo.evaluation.results import task_name

    def maker(env_id: str) -> Callable[..., Any]:
        def make(**kwargs: Any) -> Any:
            import gymnasium as gym

            import sb3_tgrpo  # noqa: F401

            return gym.make(env_id, reward=task_name(env_id), **kwargs)

        return make

    return {task_name(env_id): maker(env_id) for env_id in env_ids}


def default_folder(args: argparse.Namespace, env_ids: list[str]) -> Path:
    """A folder named after what is evaluated, so that the same command finds it again."""
    from sb3_tgrpo.evaluation.results import task_name

    policy = Path(args.model).stem if args.model is not None else Path(args.checkpoint).name
    if args.adapter is not None:
        policy += f"+{Path(args.adapter).name}"
    tasks = "+".join(args.suite + [task_name(env_id) for env_id in args.env])
    how = f"sampled{args.temperature or ''}-seed{args.seed}" if args.sampled else "greedy"
    kind = ("-drawn" if args.drawn else "") + ("-official" if args.official_order else "")
    noise = f"-noise{args.start_noise:g}" if args.start_noise else ""
    return Path("runs/eval") / f"{policy}-{tasks.replace('/', '_')}-{how}{kind}{noise}"


class _bar:
    """A progress bar as the callback of an evaluation."""

    def __init__(self, quiet: bool, total: int) -> None:
        self.quiet, self.total, self.successes, self.new = quiet, total, 0, 0

    def __enter__(self) -> Callable[["EvalEpisode", int, int], None]:
        from tqdm import tqdm

        self.bar = tqdm(total=self.total, unit="episode", disable=self.quiet, desc="eval")
        return self._note

    def _note(self, episode: "EvalEpisode", n_done: int, n_all: int) -> None:
        self.new += 1
        self.successes += episode.success
        self.bar.update(n_done - self.bar.n)
        self.bar.set_postfix_str(f"{self.successes}/{self.new} succeeded, {episode.task}")

    def __exit__(self, *_: Any) -> None:
        self.bar.close()


def print_evaluation(evaluation: "Evaluation") -> None:
    """Tables of suites and tasks."""
    from rich.console import Console
    from rich.table import Table

    how = "greedy" if evaluation.deterministic else f"sampled, T={evaluation.temperature or 1:g}"
    starts = evaluation.protocol["starts"] + (", official order" if evaluation.protocol["official_order"] else "")
    title = f"{evaluation.policy}: {how}, {starts} starts, {evaluation.assets} assets"
    table = Table(title=title, title_justify="left")
    columns = ("task", "success", "rate", "95 % interval (Wilson)", "steps")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    staged = any(episode.max_stage is not None for episode in evaluation.episodes)
    if staged:
        table.add_column("stages reached", justify="right")
    suites = evaluation.per_suite()
    rows = {**evaluation.per_task(), **(suites if len(evaluation.per_task()) > 1 else {})}
    if len(suites) > 1:
        rows["all"] = evaluation.rate
    for name, rate in rows.items():
        mine = [e for e in evaluation.episodes if name in ("all", e.task) or e.task.startswith(f"{name}-")]
        low, high = rate.interval()
        cells = [name, f"{rate.successes}/{rate.trials}", f"{rate.rate:.1%}", f"{low:.1%} to {high:.1%}"]
        cells.append(f"{sum(e.length for e in mine) / len(mine):.0f}")
        if staged:
            reached = [e.max_stage / e.n_stages for e in mine if e.max_stage is not None and e.n_stages]
            cells.append(f"{sum(reached) / max(len(reached), 1):.0%}")
        table.add_row(*cells, end_section=name not in suites and name == list(evaluation.per_task())[-1])
    Console().print(table)
