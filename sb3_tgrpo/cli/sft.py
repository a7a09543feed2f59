"""``sb3-tgrpo sft``: supervised fine-tuning on demonstrations."""

import argparse
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_tgrpo.run_folder import RunFolder

if TYPE_CHECKING:
    from sb3_tgrpo.sft.trainer import SFT

_DESCRIPTION = (
    "Behaviour cloning. The folder --out then holds the checkpoint, in the layout of openvla/openvla-7b, and the run: "
    "validations, TensorBoard log, state for --resume. For several GPUs: `accelerate launch -m sb3_tgrpo sft ...`."
)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``sft``."""
    parser = subparsers.add_parser("sft", help="train a start policy on demonstrations", description=_DESCRIPTION)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", type=Path, nargs="+", action="extend", required=True, metavar="FILE", help="HDF5 files in LIBERO's layout"
    )
    data.add_argument("--name", default=None, help="name of the action statistics; default: the suite")
    data.add_argument(
        "--assets", choices=("full", "light"), default=None, help="what the images show; default: as the files say"
    )
    data.add_argument("--image-key", default="agentview_rgb", help="camera (default %(default)s)")
    data.add_argument("--gripper", choices=("libero", "none"), default="libero", help="'none' for another action space")
    data.add_argument("--max-demos", type=int, default=None, metavar="N", help="use the first N of each file")
    data.add_argument("--drop-noops", action="store_true", help="leave out steps without motion")
    data.add_argument("--min-range", type=float, default=0.0, help="action dimensions narrower than this count as constant")
    data.add_argument("--symmetric", action="store_true", help="action ranges symmetric about 0: one bin is exactly 0")
    data.add_argument("--validation", type=float, default=0.1, help="share of the demonstrations (default %(default)s)")

    model = parser.add_argument_group("policy")
    model.add_argument("--checkpoint", required=True, help="hub id, folder in the upstream layout, or 'tiny'")
    model.add_argument("--action-bins", type=int, default=None, metavar="N", help="of --checkpoint tiny; default: 256")
    model.add_argument(
        "--lora", default=None, metavar="WHICH", help="language, upstream or none; default: none for tiny, else upstream"
    )
    model.add_argument("--lora-rank", type=int, default=None, help="rank (default 32)")
    model.add_argument("--dtype", default=None, help="float32 or bfloat16; default: by device")
    model.add_argument("--device", default="auto")
    model.add_argument(
        "--threads", type=int, default=None, metavar="N", help="on the CPU; default: 1 for tiny, where more are slower"
    )
    model.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    model.add_argument("--keep-statistics", action="store_true", help="the checkpoint's action statistics, not the data's")

    train = parser.add_argument_group("training")
    train.add_argument("--steps", type=int, required=True, help="updates")
    train.add_argument("--lr", type=float, default=None, help="default: 2e-3 for tiny, else 5e-4")
    train.add_argument("--schedule", choices=("cosine", "constant"), default="cosine")
    train.add_argument("--warmup", type=int, default=0, metavar="STEPS")
    train.add_argument("--batch-size", type=int, default=32)
    train.add_argument("--micro-batch-size", type=int, default=None, help="frames per forward pass (gradient accumulation)")
    train.add_argument("--weight-decay", type=float, default=0.01)
    train.add_argument("--ema", type=float, default=None, help="decay of averaged weights; default: 0.995 for tiny, else none")
    train.add_argument("--augment", action="store_true", help="OpenVLA's image augmentation")
    train.add_argument("--center-images", action="store_true", help="subtract the mean image; always for --checkpoint tiny")
    train.add_argument("--patience", type=int, default=None, help="stop after so many validations without progress")
    train.add_argument("--eval-every", type=int, default=None, metavar="STEPS")
    train.add_argument("--seed", type=int, default=0)

    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    output.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same settings")
    output.add_argument("--tensorboard", action="store_true", help="write a TensorBoard log into the folder")
    output.add_argument("--quiet", action="store_true", help="no progress bar, no tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train and write the checkpoint."""
    import torch as th

    from sb3_tgrpo.sft.dataset import DemonstrationDataset
    from sb3_tgrpo.sft.loop import Processes
    from sb3_tgrpo.sft.trainer import SFTError

    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {args.threads}.")
    threads = args.threads or (1 if args.checkpoint == "tiny" else None)
    if threads is not None:
        th.set_num_threads(threads)
    dataset = DemonstrationDataset(
        args.data,
        name=args.name,
        assets=args.assets,
        image_key=args.image_key,
        gripper=args.gripper,
        max_demonstrations=args.max_demos,
        drop_noops=args.drop_noops,
        min_range=args.min_range,
        symmetric=args.symmetric,
    )
    is_main = Processes(args.device).is_main
    try:
        # Before the policy is made: its base may be written into the folder.
        with RunFolder(args.out).locked() if is_main else nullcontext():
            _train(args, dataset)
    except SFTError as error:
        print(f"sb3-tgrpo: {error}", file=sys.stderr)
        return 1
    return 0


def _train(args: argparse.Namespace, dataset: Any) -> None:
    sft = make_sft(args, dataset)
    if sft.processes.is_main:
        print(dataset)
    sft.learn(
        args.steps,
        folder=args.out,
        resume=args.resume,
        eval_every=args.eval_every,
        patience=args.patience,
        callback=None if args.quiet else _print_validation,
        progress_bar=not args.quiet,
    )
    command = shlex.join(["sb3-tgrpo", *sys.argv[1:]])
    sft.save_checkpoint(args.out, command=command)
    if sft.processes.is_main:
        RunFolder(args.out).write("validations.json", sft.history)
        print(f"{sft.num_updates} updates in {sft.seconds:.0f} s; checkpoint in {args.out}")


def make_sft(args: argparse.Namespace, dataset: Any) -> "SFT":
    """The training that the arguments describe."""
    from sb3_tgrpo.sft.trainer import SFT

    tiny = args.checkpoint == "tiny"
    lora: str | dict[str, int] | None = args.lora or ("none" if tiny else "upstream")
    if lora == "none":
        lora = None
    if args.lora_rank is not None:
        lora = _with_rank(lora, args.lora_rank)
    checkpoint = args.checkpoint
    if args.action_bins is not None:
        checkpoint = _tiny_base(args)
    kwargs: dict[str, Any] = {"checkpoint": checkpoint, "lora": lora, "dtype": args.dtype}
    return SFT(
        "OpenVLAPolicy",
        dataset,
        learning_rate=args.lr if args.lr is not None else (2e-3 if tiny else 5e-4),
        batch_size=args.batch_size,
        micro_batch_size=args.micro_batch_size,
        schedule=args.schedule,
        warmup_steps=args.warmup,
        weight_decay=args.weight_decay,
        ema_decay=args.ema if args.ema is not None else (0.995 if tiny else None),
        augmentation=args.augment,
        center_images=args.center_images or (tiny and lora is None),
        statistics="checkpoint" if args.keep_statistics else "data",
        validation_fraction=args.validation,
        tensorboard_log=str(args.out / "tensorboard") if args.tensorboard else None,
        policy_kwargs={**kwargs, "gradient_checkpointing": args.gradient_checkpointing},
        seed=args.seed,
        device=args.device,
    )


def _tiny_base(args: argparse.Namespace) -> str:
    from sb3_tgrpo.openvla.tiny import save_tiny

    if args.checkpoint != "tiny":
        raise ValueError(
            f"--action-bins {args.action_bins} is for --checkpoint tiny; {args.checkpoint!r} has its own number of bins."
        )
    save_tiny(args.out / "base", args.action_bins)
    return str(args.out / "base")


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
