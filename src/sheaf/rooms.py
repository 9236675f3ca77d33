"""`sheaf.prepare(recipe)` and `sheaf.train(recipe)` beside the rooms `sheaf.prepare` and `sheaf.train`.

A name of the Python interface and a package share one attribute of `sheaf`: whichever is imported last would win. So
the packages themselves can be called, and calling one is calling the function of that name in `sheaf.api`.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class CallableRoom(ModuleType):
    """A package that can be called; set it as the `__class__` of the module."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        function = getattr(importlib.import_module("sheaf.api"), self.__name__.rpartition(".")[2])
        return function(*args, **kwargs)
