"""Stages that turn sources into a corpus, each a set of idempotent tasks."""

import sys

from sheaf.rooms import CallableRoom

sys.modules[__name__].__class__ = CallableRoom  # so that `sheaf.prepare(recipe)` works: see rooms.py
