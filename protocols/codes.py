"""Numbers shared by the trackers and the relay, for the readable run; `wire.pxd` has the same for the compiled one."""

# What a scan says of the bytes at `Tracker.stop`.
FORWARD = 0
FETCH = 1
SWALLOW = 2
GATE = 3
INVENT = 4
EDIT = 5

# What the tracker knows of the ledger.
LEDGER_AS_SEEN = 0
LEDGER_TOUCHED = 1
LEDGER_UNWATCHED = 2

# Positions of a session's gate.
GATE_OPEN = 0
GATE_DRAIN = 1
GATE_CLOSED = 2
