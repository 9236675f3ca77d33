"""What the child may still ask of the kernel: a list, and nothing else (seccomp, Linux 3.17 and later).

Landlock guards names, but not what needs none: sockets, signals, processes, other processes' memory, and the mode and
times of a file that is open, which belongs to its owner even where it was opened for reading. So after the imports the
child keeps reading, memory, clocks, its one socket and its own end; any other call, also one that a later kernel adds,
is answered with EACCES. No privilege is needed, and there is no way back. Cost: none that can be measured, as the
kernel remembers the calls that are always allowed (5.11 and later).
https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from dataclasses import dataclass

READING = {
    "read": (0, 63), "pread64": (17, 67), "readv": (19, 65), "preadv": (295, 69), "preadv2": (327, 286),
    "lseek": (8, 62), "close": (3, 57), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "stat": (4, None), "lstat": (6, None), "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "fadvise64": (221, 223),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17),
}  # fmt: skip
ANSWERING = {
    "write": (1, 64), "writev": (20, 66), "sendto": (44, 206), "recvfrom": (45, 207), "recvmsg": (47, 212),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
}  # fmt: skip
LIVING = {
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216), "madvise": (28, 233),
    "mincore": (27, 232), "brk": (12, 214), "futex": (202, 98), "membarrier": (324, 283), "rseq": (334, 293),
    "set_robust_list": (273, 99), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169),
    "clock_nanosleep": (230, 115), "nanosleep": (35, 101), "time": (201, None), "times": (100, 153),
    "getrusage": (98, 165), "getrandom": (318, 278), "uname": (63, 160), "sysinfo": (99, 179),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getsid": (124, 156), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DESCRIPTORS = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC; not F_SETOWN: it makes signals
CONTROLS = (0x5401, 0x5421, 0x5450, 0x5451)  # TCGETS (whether it is a terminal), FIONBIO, FIONCLEX, FIOCLEX

SECCOMP = {"x86_64": 317, "aarch64": 277}
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # x86-64 has each call a second time, with this bit
SET_MODE_FILTER, SPEC_ALLOW = 1, 4  # without the second, kernels before 5.16 slow the process down
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


@dataclass(frozen=True, slots=True)
class Guarded:
    """A call that is allowed if each of the arguments is one of its values, and has none of the forbidden bits. All are
    of 32 bits in the kernel."""

    numbers: tuple[int, int | None]
    values: tuple[tuple[int, tuple[int, ...]], ...] = ()
    forbidden: tuple[int, int] | None = None


def guarded(pid: int) -> dict[str, Guarded]:
    """pid: of the process, the only one that it may send a signal to."""
    return {
        "open": Guarded((2, None), forbidden=(1, CHANGING)),
        "openat": Guarded((257, 56), forbidden=(2, CHANGING)),
        "fcntl": Guarded((72, 25), ((1, DESCRIPTORS),)),
        "ioctl": Guarded((16, 29), ((1, CONTROLS),)),
        "kill": Guarded((62, 129), ((0, (pid,)),)),
        "tgkill": Guarded((234, 131), ((0, (pid,)),)),
        "prlimit64": Guarded((302, 261), ((0, (0,)), (1, (resource.RLIMIT_CPU, resource.RLIMIT_STACK)))),
    }


def deny_calls() -> bool:
    """Give up all system calls but those above. False on an architecture without a list, or an older kernel.

    Holds the calling thread and what it starts. Needs PR_SET_NO_NEW_PRIVS.
    """
    machine = platform.machine()
    if machine not in SECCOMP or struct.calcsize("P") != 8:
        return False
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program(machine, os.getpid()))
    held = ctypes.create_string_buffer(code, len(code))
    description = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(SECCOMP[machine], SET_MODE_FILTER, SPEC_ALLOW, description) == 0


def program(machine: str, pid: int) -> list[Instruction]:
    """The filter, in the kernel's packet filter language. Jumps count from the next instruction."""
    column = list(SECCOMP).index(machine)
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT[machine]),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _REFUSE)]
    for numbers in (READING | ANSWERING | LIVING).values():
        number = numbers[column]
        if number is not None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for call in guarded(pid).values():
        number = call.numbers[column]
        if number is not None:
            checks = _checks(call)
            code += [(_EQUAL, 0, len(checks), number), *checks]
    return [*code, (_RETURN, 0, 0, _REFUSE)]


def _checks(call: Guarded) -> list[Instruction]:
    code: list[Instruction] = []
    if call.forbidden is not None:
        argument, bits = call.forbidden
        code += [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), (_ANY_BIT, 0, 1, bits), (_RETURN, 0, 0, _REFUSE)]
    for argument, values in call.values:
        code.append((_LOAD, 0, 0, _ARGUMENTS + 8 * argument))
        code += [(_EQUAL, len(values) - n, 0, value) for n, value in enumerate(values)]
        code.append((_RETURN, 0, 0, _REFUSE))
    return [*code, (_RETURN, 0, 0, _ALLOW)]
