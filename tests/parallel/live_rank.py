"""A rank that gives signs of life and then does not end well, as its argument says; for test_stuck_ranks."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from sheaf.parallel.pulse import Phase, pulse

what, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
pulse.connect(rank)


def wait_for_a_lock_that_nobody_frees() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def wait_for_peers() -> None:
    with pulse.waiting():
        time.sleep(600)


pulse.begin(3)
for step in range(4, 8):
    time.sleep(0.05)
    pulse.stepped(step, 0.05)
if what == "saves":
    with pulse.phase(Phase.SAVING):
        time.sleep(1.5)
    sys.exit()
if what == "leaves a child" and rank == 1:
    child = subprocess.Popen(["sleep", "600"])
    (folder / "child").write_text(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)
if what == "says why" and rank == 1:
    pulse.last_words({"kind": "TrainingFailed", "what": "numbers"})
    sys.exit(1)
if what == "eats memory" and rank == 1:
    (folder / "group" / "cgroup.procs").write_text(str(os.getpid()))
    eaten = bytearray(os.urandom(1)) * (256 << 20)
if what.startswith("stops") and rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
if what == "locks" and rank == 1:
    wait_for_a_lock_that_nobody_frees()
if what == "stops while the other saves":
    with pulse.phase(Phase.SAVING):
        time.sleep(600)
wait_for_peers()
