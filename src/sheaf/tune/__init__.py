"""Search for what a recipe leaves open: trials by successive halving, each a run; results as a difference to it."""

import sys

from sheaf.rooms import CallableRoom

sys.modules[__name__].__class__ = CallableRoom  # so that `sheaf.tune(recipe)` works: see rooms.py
