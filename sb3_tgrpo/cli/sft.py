"""``sb3-tgrpo sft``: supervised fine-tuning on demonstrations."""

import argparse
import shlex
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sb3_tgrpo.cli.flags import add_flags, given_settings
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.settings import REQUIRED, check_settings, setting
from sb3_tgrpo.sft.settings import SFTSettings

if TYPE_CHECKING:
    from sb3_tgrpo.sft.trainer import SFT

_DESCRIPTION = (
    "Behaviour cloning. The folder --out then holds the checkpoint, in the layout of openvla/openvla-7b, and the run: "
    "validations, TensorBoard log, state for --resume. For several GPUs: `accelerate launch -m sb3_tgrpo sft ...`."
)
RENAMED = {
    "--lr": "--learning-rate", "--ema": "--ema-decay", "--validation": "--validation-fraction", "--max-demos": "--demos",
    "--warmup": "--warmup-steps", "--augment": "--augmentation", "--keep-statistics": "--statistics=checkpoint",
}  # fmt: skip
_TINY_DEFAULTS = {"learning_rate": 2e-3, "ema_decay": 0.995}


@dataclass(frozen=True)
class _Data:
    name: str | None = setting(None, "name of the action statistics; none: the suite")
    assets: Literal["full", "light"] | None = setting(None, "assets that the images show; none: as the files state")
    image_key: str = setting("agentview_rgb", "camera")
    gripper: Literal["libero", "none"] = setting("libero", "gripper convention; 'none' for another action space")
    demos: int | None = setting(None, "demonstrations of each file to use, from the first; none: all", low=1)
    drop_noops: bool = setting(False, "leave out steps without motion")
    min_range: float = setting(0.0, "action dimensions narrower than this count as constant", low=0)
    symmetric: bool = setting(False, "action ranges symmetric about 0: one bin is exactly 0")


@dataclass(frozen=True)
class _Policy:
    checkpoint: str = setting(REQUIRED, "hub id, folder in the upstream layout, or 'tiny'")
    action_bins: int | None = setting(None, "bins per action dimension of --checkpoint tiny; none: 256", low=2)
    lora: str = setting("auto", "adapter: language, upstream or none; auto: none for tiny, else upstream")
    lora_rank: int | None = setting(None, "rank of the adapter; none: 32", low=1)
    dtype: str | None = setting(None, "float32 or bfloat16; none: by device")
    device: str = setting("auto", "device, such as cpu or cuda")
    threads: int | None = setting(None, "threads on the CPU; none: 1 for tiny, where more are slower, else PyTorch's", low=1)
    gradient_checkpointing: bool = setting(False, "recompute layers in the backward pass: less memory, a third more time")


@dataclass(frozen=True)
class _Loop:
    steps: int = setting(REQUIRED, "updates", low=1)
    eval_every: int | None = setting(None, "updates between validations; none: a twentieth of the training", low=1)
    patience: int | None = setting(None, "validations without progress after which training stops; none: no limit", low=1)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``sft``."""
    parser = subparsers.add_parser("sft", help="train a base policy on demonstrations", description=_DESCRIPTION)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, nargs="+", action="extend", required=True, metavar="FILE", help="HDF5 files in LIBERO's layout"
    )
    add_flags(data, _Data)
    add_flags(parser.add_argument_group("policy"), _Policy)
    training = parser.add_argument_group("training (for tiny the defaults are --learning-rate 0.002 and --ema-decay 0.995)")
    add_flags(training, _Loop)
    add_flags(training, SFTSettings)

    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    output.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same settings")
    output.add_argument("--tensorboard", action="store_true", help="write a TensorBoard log into the folder")
    output.add_argument("--quiet", action="store_true", help="no progress bar, no tables")
    parser.set_defaults(run=run)


def _settings(args: argparse.Namespace, owner: type) -> Any:
    settings = owner(**given_settings(args, owner))
    check_settings(settings)
    return settings


def run(args: argparse.Namespace) -> int:
    """Train and write the checkpoint."""
    import torch as th

    from sb3_tgrpo.openvla.loading import resolve_device
    from sb3_tgrpo.processes import Processes
    from sb3_tgrpo.sft.dataset import DemonstrationDataset
    from sb3_tgrpo.sft.trainer import SFTError

    policy = _settings(args, _Policy)
    threads = policy.threads or (1 if policy.checkpoint == "tiny" else None)
    if threads is not None:
        th.set_num_threads(threads)
    data = vars(_settings(args, _Data))
    dataset = DemonstrationDataset(args.data, max_demonstrations=data.pop("demos"), **data)
    processes = Processes(resolve_device(policy.device))
    try:
        # Before the policy is made: its base may be written into the folder.
        with RunFolder(args.out).locked() if processes.is_main else nullcontext():
            _train(args, dataset)
    except SFTError as error:
        print(f"sb3-tgrpo: {error}", file=sys.stderr)
        return 1
    processes.finish()
    return 0


def _train(args: argparse.Namespace, dataset: Any) -> None:
    loop, sft = _settings(args, _Loop), make_sft(args, dataset)
    if sft.processes.is_main:
        print(dataset)
    sft.learn(
        loop.steps,
        folder=args.out,
        resume=args.resume,
        eval_every=loop.eval_every,
        patience=loop.patience,
        callback=None if args.quiet else _print_validation,
        progress_bar=not args.quiet,
    )
    command = shlex.join(["sb3-tgrpo", *sys.argv[1:]])
    sft.save_checkpoint(args.out, command=command)
    if sft.processes.is_main:
        RunFolder(args.out).write("validations.json", sft.history)
        print(f"{sft.num_updates} updates in {sft.seconds:.0f} s; checkpoint in {args.out}")


def make_sft(args: argparse.Namespace, dataset: Any) -> "SFT":
    """The training on a dataset that the parsed arguments describe."""
    from sb3_tgrpo.sft.trainer import SFT

    policy = _settings(args, _Policy)
    tiny = policy.checkpoint == "tiny"
    lora: Any = ("none" if tiny else "upstream") if policy.lora == "auto" else policy.lora
    lora = None if lora == "none" else lora
    settings = {**(_TINY_DEFAULTS if tiny else {}), **given_settings(args, SFTSettings)}
    if tiny and lora is None:
        settings.setdefault("center_images", True)
    return SFT(
        "OpenVLAPolicy",
        dataset,
        tensorboard_log=str(args.out / "tensorboard") if args.tensorboard else None,
        policy_kwargs={
            "checkpoint": policy.checkpoint if policy.action_bins is None else _tiny_base(policy, args.out),
            "lora": lora if policy.lora_rank is None else _with_rank(lora, policy.lora_rank),
            "dtype": policy.dtype,
            "gradient_checkpointing": policy.gradient_checkpointing,
        },
        device=policy.device,
        **settings,
    )


def _tiny_base(policy: _Policy, folder: Path) -> str:
    from sb3_tgrpo.openvla.tiny import save_tiny

    if policy.checkpoint != "tiny":
        raise ValueError(
            f"--action-bins {policy.action_bins} is for --checkpoint tiny; {policy.checkpoint!r} has its own number of bins: "
            "leave the flag out."
        )
    assert policy.action_bins is not None
    save_tiny(folder / "base", policy.action_bins)
    return str(folder / "base")


def _with_rank(lora: Any, rank: int) -> Any:
    if lora is None:
        raise ValueError(f"--lora-rank {rank} needs an adapter: pass --lora language or upstream.")
    from sb3_tgrpo.openvla.lora import UPSTREAM_MODULES

    modules = {"target_modules": list(UPSTREAM_MODULES)} if lora == "upstream" else {}
    return {"r": rank, **modules}


def _print_validation(sft: "SFT") -> None:
    """One line per validation."""
    if not sft.history or not sft.processes.is_main:
        return
    last = sft.history[-1]
    errors = " ".join(f"{key.removeprefix('l1_')} {value:.3f}" for key, value in last.items() if key.startswith("l1_"))
    print(
        f"update {last['step']:.0f}, {last['seconds']:.0f} s: validation loss {last['loss']:.3f} nats per token, "
        f"token accuracy {last['token_accuracy']:.3f}, L1 error {errors}"
    )
