"""``python -m fused_sched``."""

import sys

from fused_sched.cli import main

if __name__ == "__main__":
    sys.exit(main())
