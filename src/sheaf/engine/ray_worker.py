"""A task on a Ray worker: the same JSON in and out as in a worker of the local engine.

Ray finds this function by its name, so every node needs this version of Sheaf installed; no code travels, and of what
is sent nothing but one string of JSON each way. Imports little: it is the first thing that a worker loads.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform

from sheaf.engine.worker import answer, encode


def serve(request: bytes) -> bytes:
    """Run one task. request: {"function", "arguments", "prefixes", "version"}; the answer as of worker.answer."""
    asked = json.loads(request)
    wrong = other_version(asked["version"])
    if wrong is not None:
        return encode({"sheaf": ["EnvironmentProblem"], "words": wrong, "traceback": ""})
    return encode(answer(asked["function"], asked["arguments"], asked["prefixes"]))


def other_version(wanted: str) -> list[str] | None:
    """What, where, why and fix of the error, if this node has another version of Sheaf than the one that asks."""
    here = importlib.metadata.version("sheaf")
    if wanted == here:
        return None
    return [
        "a node of the Ray cluster has another version of sheaf",
        platform.node(),
        f"it is {here} there and {wanted} here",
        "install the same version on every node",
    ]
