"""``python -m sb3_tgrpo``."""

import sys

from sb3_tgrpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
