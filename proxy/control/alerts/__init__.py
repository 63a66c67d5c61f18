"""Alerts: what is watched, when it fires, who is told, and what became of that.

From the bottom: `model` (what an alert is), `state` (a table: inactive, pending, firing, resolved), `watched` (what can be
watched, and Turnout's own rules), `message` and `deliver` (how a receiver is told), `store` (what survives a restart), `post`
(queues and tries), `keeper` (the shell that looks each second).
"""
