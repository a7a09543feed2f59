"""
Print the requirements that pyproject.toml names, to install them without the package.

    python scripts/requirements.py docs         # those of an extra
    python scripts/requirements.py --minimum    # the oldest versions of the package's own requirements
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(argument: str) -> list[str]:
    """
    :param argument: Name of an extra, or ``--minimum``.
    :return: Requirements, one an entry.
    """
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    if argument != "--minimum":
        return list(project["optional-dependencies"][argument])
    return [re.sub(r">=([\d.]+).*", r"==\1", requirement) for requirement in project["dependencies"] if ">=" in requirement]


if __name__ == "__main__":
    print(*requirements(sys.argv[1]))
