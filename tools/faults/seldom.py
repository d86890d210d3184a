"""`headwise` with a coordinator that wants a heartbeat every ten seconds only: to be compared with.

What heartbeats cost is the difference to one as it is. Nothing else may differ, so this is no
option that somebody could set: boards that fall silent would be noticed late.
"""

import sys

from coordinator import control
from tools.cli import main

__all__ = ["SELDOM_S"]

# The longest that agents allow themselves to be told.
SELDOM_S = 10.0

if __name__ == "__main__":
    control.HEARTBEAT_S = SELDOM_S
    sys.exit(main())
