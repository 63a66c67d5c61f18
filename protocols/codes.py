"""Numbers shared by the trackers and the relay, for the readable run; `wire.pxd` has the same for the compiled one."""

# What a scan says of the bytes at `Tracker.stop`.
FORWARD = 0
FETCH = 1
SWALLOW = 2
GATE = 3
INVENT = 4

# Positions of a session's gate.
GATE_OPEN = 0
GATE_DRAIN = 1
GATE_CLOSED = 2
