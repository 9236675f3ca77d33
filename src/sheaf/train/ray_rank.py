"""One rank of a run on a node of a Ray cluster: a process of its own, which Ray's worker starts and waits for.

As with the tasks of the preparation, Ray finds this by its name, no code travels, and what is sent is one string of
JSON each way. The process is bound to Ray's worker and dies with it; cancelling the task asks it to stop after a step.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sheaf.engine.ray_worker import other_version
from sheaf.parallel.launch import STOP_SECONDS
from sheaf.train.worker import LAST_WORDS

TAIL_BYTES = 4000


def place() -> bytes:
    """Where this is: an address, and a port that is free there."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return json.dumps({"address": ray.util.get_node_ip_address(), "port": port}).encode()


def run_rank(request: bytes) -> bytes:
    """request: {"run", "environment", "version"}. Returns {"code", "words", "tail"}: how the rank ended, what it had to
    say, and the end of what it wrote to stderr."""
    asked = json.loads(request)
    wrong = other_version(asked["version"])
    if wrong is not None:
        what, where, why, fix = wrong
        words = {"kind": "EnvironmentProblem", "code": 4, "what": what, "where": where, "why": why, "fix": fix}
        return json.dumps({"code": 4, "words": words, "tail": ""}).encode()
    with tempfile.TemporaryDirectory(prefix="sheaf-rank-") as folder:
        words_file, errors_file = Path(folder) / "words.json", Path(folder) / "stderr"
        environment = {**os.environ, **asked["environment"], LAST_WORDS: str(words_file)}
        with errors_file.open("wb") as errors:
            command = [sys.executable, "-m", "sheaf.train.worker", asked["run"]]
            rank = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=errors)
            try:
                code = rank.wait()
            except KeyboardInterrupt:  # the task was cancelled
                rank.terminate()
                code = rank.wait(STOP_SECONDS)
            finally:
                rank.kill()
        words: Any = json.loads(words_file.read_bytes()) if words_file.exists() else None
        tail = errors_file.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    return json.dumps({"code": code, "words": words, "tail": tail}).encode()
