"""One switch: its states, its plan, its checks, its sans-IO run, and the shell that carries the run out."""
