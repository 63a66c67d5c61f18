"""When Turnout switches by itself: policies, their evaluation from the one stream of figures, and what came of it.

`model` has the words, `evaluation` and `schedule` decide (pure), `store` keeps, `keeper` is the shell around them.
"""
