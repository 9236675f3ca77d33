"""The training loop and what stands around it: optimisers, checkpoints, journal, evaluation."""

import sys

from sheaf.rooms import CallableRoom

sys.modules[__name__].__class__ = CallableRoom  # so that `sheaf.train(recipe)` works: see rooms.py
