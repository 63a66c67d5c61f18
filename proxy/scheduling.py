"""How long a turn on a processor a thread asks the kernel for.

From Linux 6.12 on a thread may say so (sched_setattr(2), `sched_runtime` of SCHED_OTHER, 0.1 to 100 ms; no right is needed).
Its share of the processors stays what it is; but who asks for a longer turn than others is interrupted by them the moment they
have something to do, and does not interrupt them. Older kernels take the call and do nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

_NUMBERS: Final = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""System calls sched_setattr and sched_getattr by machine; the C library has names for them only since glibc 2.41."""

_FAIR: Final = (os.SCHED_OTHER, os.SCHED_BATCH)

_RESET_ON_FORK: Final = 1
"""SCHED_FLAG_RESET_ON_FORK: processes and threads that are begun have turns of the kernel's own length."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    """struct sched_attr, as of Linux 5.3."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
        ("util_min", ctypes.c_uint32),
        ("util_max", ctypes.c_uint32),
    )


def turn_ns(thread: int = 0) -> int:
    """What a thread asks for, in nanoseconds; 0: nobody can know it here. `thread` is its number, or that of its process for
    the first one; 0: the one that calls."""
    found = _attributes(thread)
    return int(found.runtime) if found is not None else 0


def ask_for_turns(length_ns: int) -> bool:
    """Turns of that length for the calling thread, from now on; 0: of the kernel's own. False if that cannot be: not on this
    machine, not with this kernel, or the thread has another policy than the usual one, which somebody has chosen."""
    wanted = _attributes()
    if wanted is None or wanted.policy not in _FAIR:
        return False
    wanted.flags, wanted.runtime = _RESET_ON_FORK, length_ns
    set_it, _ = _NUMBERS[platform.machine()]
    if _libc.syscall(set_it, 0, ctypes.byref(wanted), 0):
        return False
    return turn_ns() == length_ns or not length_ns


def _attributes(thread: int = 0) -> _Attributes | None:
    found = _Attributes(size=ctypes.sizeof(_Attributes))
    _, get_it = _NUMBERS.get(platform.machine(), (0, 0))
    if not get_it or _libc.syscall(get_it, thread, ctypes.byref(found), found.size, 0):
        return None
    return found
