"""``sb3-tgrpo demos``: collect demonstrations with a scripted expert, and look at them."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_tgrpo.cli.flags import add_flags, given_settings
from sb3_tgrpo.settings import settings_of

if TYPE_CHECKING:
    from sb3_tgrpo.envs.demos.files import Demos


RENAMED = {"--episodes": "--demos"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``demos`` with its two actions."""
    from sb3_tgrpo.envs.demos.collection import CollectionSettings

    parser = subparsers.add_parser("demos", help="demonstrations: collect, show")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    collect = actions.add_parser("collect", help="let a scripted expert demonstrate a task", description=_COLLECT)
    collect.add_argument(
        "--env", dest="task", required=True, metavar="ID", help="LIBERO/libero_object-3-v0, or libero_object-3"
    )
    collect.add_argument("--out", type=Path, required=True, metavar="FILE", help="HDF5 file")
    add_flags(collect, CollectionSettings, [item.name for item in settings_of(CollectionSettings) if item.name != "task"])
    collect.add_argument("--workers", type=int, default=None, help="processes; default: one per CPU core")
    collect.add_argument("--quiet", action="store_true", help="no progress bar")
    collect.set_defaults(run=run_collect)

    show = actions.add_parser("show", help="print a table of a file; write a video and a contact sheet")
    show.add_argument("file", type=Path, metavar="FILE", help="HDF5 file in LIBERO's layout")
    show.add_argument("--task", default=None, help="fail if the file is of another task")
    show.add_argument("--image-size", type=int, default=None, help="fail if pictures have another size")
    show.add_argument("--rows", type=int, default=20, help="demonstrations in the table (default %(default)s)")
    show.add_argument("--key-poses", action="store_true", help="print the key poses")
    show.add_argument("--sheet", type=Path, default=None, metavar="PNG", help="write a contact sheet, a row per demonstration")
    show.add_argument("--video", type=Path, default=None, metavar="MP4", help="write a video")
    show.add_argument("--demo", type=int, default=None, metavar="I", help="only this one in the video")
    show.set_defaults(run=run_show)


_COLLECT = (
    "Only successes are kept unless --keep-failures is given. After an interruption the same command continues; the file "
    "appears when it is complete. It follows from the settings and the seed, not from the number of workers."
)


def run_collect(args: argparse.Namespace) -> int:
    """Collect demonstrations."""
    from tqdm import tqdm

    from sb3_tgrpo.envs.demos.collection import CollectionError, CollectionSettings, collect_demos
    from sb3_tgrpo.envs.demos.files import load_demos
    from sb3_tgrpo.run_folder import cpu_count

    settings = CollectionSettings(**given_settings(args, CollectionSettings))
    workers = args.workers if args.workers is not None else min(cpu_count(), settings.demos)
    with tqdm(total=settings.demos, unit="demo", disable=args.quiet, desc=settings.name) as bar:

        def progress(outcomes: dict[int, dict[str, Any]]) -> None:
            kept = [outcome for outcome in outcomes.values() if outcome["success"] or settings.keep_failures]
            bar.n = min(len(kept), settings.demos)
            failures = sum(not outcome["success"] for outcome in outcomes.values())
            bar.set_postfix(failed=failures, steps=sum(outcome["steps"] for outcome in outcomes.values()))

        command = shlex.join(["sb3-tgrpo", *sys.argv[1:]])
        try:
            path = collect_demos(settings, args.out, workers=workers, command=command, progress=progress)
        except CollectionError as error:
            print(f"sb3-tgrpo: {error}", file=sys.stderr)
            return 1
    print("\n".join(_header(load_demos(path))))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print a file's table; write pictures if asked to."""
    from sb3_tgrpo.envs.demos.files import load_demos

    demos = load_demos(args.file, task=args.task, image_size=args.image_size)
    print("\n".join([*_header(demos), "", *_table(demos, args.rows)]))
    if args.key_poses:
        from sb3_tgrpo.envs.demos.key_poses import key_poses

        print(f"\n{key_poses(demos)}")
    if args.sheet is not None:
        from sb3_tgrpo.envs.demos.pictures import write_contact_sheet

        write_contact_sheet(demos, args.sheet)
        print(f"\ncontact sheet: {args.sheet}")
    if args.video is not None:
        from sb3_tgrpo.envs.demos.pictures import write_video

        if args.demo is not None and not 0 <= args.demo < len(demos):
            raise ValueError(f"--demo {args.demo}: the file has demonstrations 0 to {len(demos) - 1}.")
        write_video(list(demos) if args.demo is None else [demos[args.demo]], args.video)
        print(f"video: {args.video}")
    return 0


def _header(demos: "Demos") -> list[str]:
    import numpy as np

    lengths = np.array([len(demo) for demo in demos])
    when = "after" if demos[0].lag else "before"
    picture = "no pictures" if demos.image_shape is None else f"pictures {demos.image_shape[0]} x {demos.image_shape[1]}"
    lines = [
        f"{demos.path}  {demos.path.stat().st_size / 1e6:.1f} MB",
        f"task          {demos.task or 'unknown'}: {demos.instruction}",
        f"demos         {len(demos)}, {sum(demo.success for demo in demos)} successful, {lengths.sum()} steps; "
        f"length median {np.median(lengths):.0f}, {lengths.min()} to {lengths.max()}",
        f"observations  {picture}, {demos.assets} assets; taken {when} the action",
    ]
    record = demos.record
    if record:
        shown = ["seed", "expert", "noise", "dart", "pushes", "slips", "detour", "start_noise", "joint_noise"]
        shown += ["stored_starts", "keep_failures", "drop_noops"]
        lines.append("settings      " + ", ".join(f"{name} {record[name]}" for name in shown if name in record))
        attempts, successes = record.get("attempts"), record.get("successes")
        lines.append(f"expert        {successes} of {attempts} episodes successful; sb3-tgrpo {record.get('version')}")
        lines.append(f"command       {record.get('command')}")
    return lines


def _table(demos: "Demos", rows: int) -> list[str]:
    import numpy as np

    lines = [f"{'demo':<10} {'steps':>5} {'success':>7} {'path m':>7} {'grips':>5} {'largest action':>14}  initial state"]
    for demo in demos[:rows]:
        path = float(np.linalg.norm(np.diff(demo.ee_pos, axis=0), axis=1).sum())
        grips = int((np.diff(np.sign(demo.actions[:, 6])) != 0).sum())
        largest = float(np.abs(demo.actions[:, :6]).max())
        state_id, seed = demo.record.get("init_state_id"), demo.record.get("seed")
        start = f"stored {state_id}" if state_id is not None else f"seed {seed}" if seed is not None else "unknown"
        success = "yes" if demo.success else "no"
        lines.append(f"{demo.name:<10} {len(demo):>5} {success:>7} {path:>7.2f} {grips:>5} {largest:>14.2f}  {start}")
    if len(demos) > rows:
        lines.append(f"... and {len(demos) - rows} more (--rows)")
    return lines
