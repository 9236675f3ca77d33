"""Who prepares in a workspace that several machines can reach: an object that names its holder, put on a condition.

The holder changes the object every RENEW_SECONDS. Whoever waits looks whether it changes: if it has stayed the same for
LEASE_SECONDS of the waiter's own clock the holder has ended, and the object is taken over on the condition that it is
still the same. So no two clocks are compared (the scheme of Gray and Cheriton's leases, 1989, told by change alone). A
holder whose process on this machine has ended is not waited for.

A lease keeps work from being done twice; nothing breaks without it, as tasks are idempotent and HEAD names whole
versions. So a holder that was cut off for long goes on, and a store without conditions is used without a lease.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from sheaf.console import Console
from sheaf.corpus.store import NoConditions, ObjectStore
from sheaf.errors import TryAgain
from sheaf.files import this_machine

RENEW_SECONDS = 10.0
LEASE_SECONDS = 60.0
LOOK_SECONDS = 2.0


@contextmanager
def held(
    store: ObjectStore,
    path: Path,
    console: Console,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Generator[None]:
    """Hold the lease that the path names for as long as the block takes."""
    try:
        etag = _take(store, path, console, clock, sleep)
    except NoConditions:
        console.note("this object store cannot keep two prepares apart: see to it that only one runs at a time")
        yield
        return
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(store, path, etag, done), name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()


def _take(
    store: ObjectStore, path: Path, console: Console, clock: Callable[[], float], sleep: Callable[[float], None]
) -> str:
    """Wait until the lease is ours; its etag."""
    seen, since, told = "", clock(), False
    while True:
        found = store.read(path)
        if found is None:
            taken = store.put_if(path, _words(), None)
        else:
            words, etag = found
            if etag != seen:
                seen, since = etag, clock()
            gone = _has_ended(words) or clock() - since >= LEASE_SECONDS
            taken = store.put_if(path, _words(), etag) if gone else None
        if taken is not None:
            return taken
        if found is not None and not told:
            told = True
            holder = _holder(found[0])
            console.note(f"waiting for process {holder['pid']} on {holder['host']}, which prepares in {store.url}")
        sleep(LOOK_SECONDS)


def _keep(store: ObjectStore, path: Path, etag: str, done: threading.Event) -> None:
    """Renew until done, then give it back; if it was taken over meanwhile it is no longer ours to touch."""
    held_etag: str | None = etag
    while not done.wait(RENEW_SECONDS) and held_etag is not None:
        try:
            held_etag = store.put_if(path, _words(), held_etag)
        except TryAgain:  # an outage; the tasks have their own opinion of it
            continue
    try:
        # On a condition as well: what is deleted must be ours, and no store deletes on one.
        if held_etag is not None and store.put_if(path, _words(ended=True), held_etag) is not None:
            store.delete(path)
    except TryAgain:
        return  # whoever comes next waits for a minute


def _words(*, ended: bool = False) -> bytes:
    """About the holder; a word that is never the same twice makes every renewal a change."""
    about = {"host": socket.gethostname(), "machine": this_machine(), "pid": os.getpid(), "ended": ended}
    return orjson.dumps({**about, "nonce": secrets.token_hex(8)})


def _holder(words: bytes) -> dict[str, Any]:
    """What the object says; somebody else may have written it."""
    unknown = {"host": "an unknown machine", "machine": "", "pid": 0, "ended": False}
    try:
        said = orjson.loads(words)
    except orjson.JSONDecodeError:
        return unknown
    return {**unknown, **said} if isinstance(said, dict) else unknown


def _has_ended(words: bytes) -> bool:
    holder = _holder(words)
    if holder["ended"] is True:
        return True
    return holder["machine"] == this_machine() and not Path(f"/proc/{holder['pid']}").exists()
