"""A worker process of the local engine: reads tasks as JSON lines, runs them one by one, answers with JSON lines.

The parent starts it with a fresh interpreter and talks over two pipes; no code and no pickle crosses them, only the
names of functions. Standard output of the task goes to stderr, so that nothing it prints can be taken for an answer.
Cost: 60 ms and 15 MB until the first task's own imports; torch is not among ours.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from sheaf.console import telling
from sheaf.errors import SheafError
from sheaf.processes import die_with_parent

# A worker is one core's worth: native libraries that start a thread a core would start cores² of them.
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def main(parent: int, prefixes: Sequence[str]) -> None:
    """Serve tasks until the parent closes the pipe, ends, or sends SIGTERM."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it then sends SIGTERM
    signal.signal(signal.SIGTERM, _leave)
    requests, answers = _take_pipes()
    lock = threading.Lock()  # threads of a task may tell something

    def send(value: dict[str, Any]) -> None:
        with lock:
            answers.write(encode(value))
            answers.flush()

    with telling(lambda text: send({"note": text})):
        for line in requests:
            request = json.loads(line)
            send(answer(request["function"], request["arguments"], prefixes))


def encode(value: Any) -> bytes:
    """One JSON line. Raises ValueError or TypeError for what JSON cannot say exactly (NaN, tuples, integer keys)."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    if json.loads(text) != value:
        raise ValueError("it changes when written as JSON (a tuple, or a key that is not a string)")
    return text.encode() + b"\n"


def one_thread() -> dict[str, str]:
    """Environment variables of a worker; the user's own word counts."""
    return {name: os.environ.get(name, "1") for name in ONE_THREAD}


def resolve(name: str, prefixes: Sequence[str]) -> Callable[..., Any]:
    """The function that "module:function" names; the module must be one of the prefixes or lie under one."""
    module, _, function = name.partition(":")
    if not any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes):
        raise ValueError(f"'{name}' is not a task: only functions under {', '.join(prefixes)} are")
    return getattr(importlib.import_module(module), function)


def answer(name: str, arguments: dict[str, Any], prefixes: Sequence[str]) -> dict[str, Any]:
    """Run a task: {"result": …}, or what it raised as JSON."""
    try:
        result = resolve(name, prefixes)(**arguments)
        if not isinstance(result, dict):
            raise TypeError(f"a task returns a JSON object, {name} returned {type(result).__name__}")
        encode(result)
    except SheafError as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        words = [error.what, error.where, error.why, error.fix]
        return {"sheaf": kinds, "words": words, "traceback": traceback.format_exc()}
    except Exception as error:  # noqa: BLE001  (whatever a task raises is told to the parent, which raises it)
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    return {"result": result}


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Keep the two pipes for ourselves; descriptors 0 and 1 become /dev/null and stderr for the tasks."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, answers


def _leave(signum: int, _frame: object) -> None:
    # An exception, so that the task's `finally` blocks remove its temporary files.
    sys.exit(128 + signum)
