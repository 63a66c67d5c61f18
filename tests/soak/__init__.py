"""Torture: writers that record what they were told, and faults thrown at everything below and beside them.

history     what clients were told and have read, and what the servers have at the end: judged without a server
clients     one connection through Turnout, that tells of each transaction whether it was acknowledged, refused, or neither
writers     what clients do
gap         a TCP fault injector, which stands between Turnout and an engine
world       two servers, a gap before each, a Turnout, and a look from outside at who takes writes
faults      what is thrown, and how it is healed
switches    many switches in a row under load, with nothing else in the way

`python -m tests.soak --help`, `python -m tests.soak.switches --help`.
"""
