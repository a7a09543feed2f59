"""``python -m sb3_tgrpo.study.cell FOLDER PARENT``: a cell of a study, in a process that ends with its parent."""

import json
import sys
from pathlib import Path

from sb3_tgrpo.processes import end_with_parent
from sb3_tgrpo.train.config import TrainConfig


def main(folder: str, parent: str) -> int:
    """Run the configuration in the folder's ``cell.json``, for the study with the process id ``parent``."""
    from sb3_tgrpo.train.errors import TrainingError
    from sb3_tgrpo.train.job import run_training

    # A study that is killed would leave cells behind, which would be in the way of the same cells when it is continued.
    end_with_parent(int(parent))
    config = TrainConfig.from_dict(json.loads((Path(folder) / "cell.json").read_text(encoding="utf-8")))
    try:
        run_training(config, folder, command=f"sb3-tgrpo train --config {folder}/config.json --out {folder}")
    except (TrainingError, ValueError, TypeError, ImportError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
