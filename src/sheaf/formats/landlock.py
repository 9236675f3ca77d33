"""No files, by the kernel's Landlock (Linux 5.13 and later): what is open stays open, nothing else can be opened.

With it go, where the kernel is new enough: TCP (6.7), signals to and abstract Unix sockets of other processes (6.12). A
process under Landlock cannot trace one that is not. Three system calls, no privilege, no way back.
https://docs.kernel.org/userspace-api/landlock.html. What it does not stop: Unix sockets that lie in the file system.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
GET_VERSION = 1
PATH_BENEATH = 1
READ = 1 << 2 | 1 << 3  # files, folders
# Rights to files by version of the interface: 13 at first, then linking across folders, truncating, device ioctls.
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
TCP, TCP_SINCE = 1 << 0 | 1 << 1, 4  # bind, connect
SCOPES, SCOPES_SINCE = 1 << 0 | 1 << 1, 6  # abstract Unix sockets, signals


def deny_files(readable: Iterable[str]) -> bool:
    """Give up all access to files, but for reading below these folders. False if the kernel has no Landlock.

    Only the calling thread and what it starts are held, so there must be no other. Needs PR_SET_NO_NEW_PRIVS.
    """
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), GET_VERSION)
    if version < 1:
        return False
    files = max(rights for since, rights in RIGHTS.items() if since <= version)
    net, scopes = TCP if version >= TCP_SINCE else 0, SCOPES if version >= SCOPES_SINCE else 0
    attributes = struct.pack("=QQQ", files, net, scopes)  # an older kernel takes the longer form if the rest is zero
    rules = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    try:
        for folder in readable:
            with contextlib.suppress(OSError):
                _allow(libc, rules, folder)
        return libc.syscall(RESTRICT_SELF, rules, 0) == 0
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, folder: str) -> None:
    if not Path(folder).is_dir():
        return
    fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        libc.syscall(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", READ, fd), 0)
    finally:
        os.close(fd)
