"""``python -m sb3_tgrpo.study.cell FOLDER``: one cell of a study, in a process that ends with the one that started it."""

import json
import os
import sys
import threading
from pathlib import Path

from sb3_tgrpo.train.config import TrainConfig


def _end_with_parent() -> None:
    # The study holds the other end of standard input. Without this, a study that is killed would leave cells behind, which
    # would be in the way of the same cells when it is continued. Not sys.stdin: its lock would be held at the end.
    while os.read(0, 1):
        pass
    os._exit(1)


def main(folder: str) -> int:
    """
    Run the configuration in the folder's ``cell.json``.

    :param folder: Folder of the cell.
    :return: Exit status.
    """
    from sb3_tgrpo.train.errors import TrainingError
    from sb3_tgrpo.train.job import run_training

    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = TrainConfig.from_dict(json.loads((Path(folder) / "cell.json").read_text(encoding="utf-8")))
    try:
        run_training(config, folder, command=f"sb3-tgrpo train --config {folder}/config.json --out {folder}")
    except (TrainingError, ValueError, TypeError, ImportError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
