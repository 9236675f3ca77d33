"""A rank that fails at once (rank 0), or that hears nothing any more (the others); for test_launch_ranks."""

import os
import signal
import sys

if os.environ["RANK"] == "0":
    sys.exit(int(sys.argv[1]))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    signal.pause()
