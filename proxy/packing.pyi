from typing import Final

ZSTD_LEVEL_MAX: Final[int]

class Packing:
    why: str
    def __init__(self, algorithm: str, level: int, *, is_to_server: bool) -> None: ...
