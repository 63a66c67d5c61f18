"""Fuzzing: mutated conversations against the parsers and against a live Turnout. `make fuzz` runs `tests.fuzz.__main__`.

`mutation` makes bytes worse, `parsers` holds the targets that need no socket, `live` is the proxy between a hostile client
and a hostile server beside a witness. Everything follows from one seed, which is printed. What is kept is in
tests/corpus/fuzz and runs with the tests.
"""


class Found(Exception):
    """What the fuzzer is for: a rule that was broken, and how to see it again."""
