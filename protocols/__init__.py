"""The wire protocols: bytes in, meaning out. No sockets, no event loop, no clock, no logging.

The hot modules are written in Cython's pure Python mode: one file that is compiled for production and can be read,
debugged and fuzzed as it stands. `TURNOUT_READABLE=1` in the environment runs the readable form instead of the
compiled one; the test suite runs on both.
"""

import os

IS_READABLE = os.environ.get("TURNOUT_READABLE", "") == "1"

if IS_READABLE:
    from protocols._readable import prefer_source

    prefer_source(__path__)
