"""One of some ranks that train several runs one after another, to their ends: to start ranks takes longer than that."""

from __future__ import annotations

import sys
from pathlib import Path

from sheaf.console import Silent
from sheaf.parallel.ranks import join
from sheaf.train.run import Run
from sheaf.train.setup import exact
from sheaf.train.trainer import train_run

if __name__ == "__main__":
    with exact(1), join() as joined:
        for folder in sys.argv[1:]:
            train_run(Run.open(Path(folder)), joined, Silent())
