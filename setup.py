"""The compiled parts. Everything else stands in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent

# A debug build checks bounds and traces lines for coverage: TURNOUT_DEBUG=1 pip install -e .
IS_DEBUG = os.environ.get("TURNOUT_DEBUG", "") == "1"

PURE = [
    "protocols/wire.py",
    "protocols/postgres/auth.py",
    "protocols/postgres/framing.py",
    "protocols/postgres/handshake.py",
    "protocols/postgres/messages.py",
    "protocols/postgres/proof.py",
    "protocols/postgres/text.py",
    "protocols/postgres/statements.py",
    "protocols/postgres/tracker.py",
    "protocols/mysql/tracker.py",
]
NATIVE = ["proxy/openssl.pyx", "proxy/packing.pyx", "proxy/dataplane/accept.pyx", "proxy/dataplane/relay.pyx"]
# Shared libraries of the system, and their headers: OpenSSL 3, zlib, libzstd.
LIBRARIES = {"proxy/openssl.pyx": ["ssl", "crypto"], "proxy/packing.pyx": ["z", "zstd"]}

# Calls between our own functions and to libc go straight: an entry of the linkage table is one more cache line for each
# function of the per-chunk path, and after a call of the kernel every line is waited for.
COMPILE = ["-O2", "-g0", "-fno-plt", "-fno-semantic-interposition", "-fvisibility=hidden"]


def extension(path: str) -> Extension:
    return Extension(
        path.rsplit(".", 1)[0].replace("/", "."),
        [path],
        libraries=LIBRARIES.get(path, []),
        extra_compile_args=COMPILE if not IS_DEBUG else ["-O0", "-g"],
        define_macros=[("CYTHON_TRACE", "1")] if IS_DEBUG else [],
    )


setup(
    ext_modules=cythonize(  # type: ignore[no-untyped-call]  # Cython has types, this function has none
        [extension(path) for path in PURE + NATIVE if (ROOT / path).exists()],
        quiet=True,
        compiler_directives={
            "language_level": 3,
            # Types stand in the .pxd files; annotations are for mypy and readers.
            "annotation_typing": False,
            "boundscheck": IS_DEBUG,
            "wraparound": False,
            "initializedcheck": IS_DEBUG,
            "cdivision": True,
            # Nobody pickles a tracker, and the code for it would be the longest function of its module.
            "auto_pickle": False,
            "linetrace": IS_DEBUG,
            "embedsignature": True,
        },
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
