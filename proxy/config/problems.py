"""What is wrong with a config file: collected, each with file, line and key, and told together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from proxy.config.text import KeyPath, spell
from proxy.errors import ConfigError


class ConfigErrors(ConfigError):
    """Several errors of one config file; `errors` has each, and the text is one line for each."""

    def __init__(self, errors: list[ConfigError]) -> None:
        assert errors
        super().__init__(errors[0].where, errors[0].text)
        self.errors = errors
        self.text = "\n".join(error.text for error in errors)
        self.args = (self.text,)


class Problems:
    """Collects what is wrong, each with file, line and key."""

    def __init__(self, path: Path, lines: Mapping[KeyPath, int]) -> None:
        self.path = path
        self._lines = lines
        self._errors: list[tuple[int, ConfigError]] = []

    def add(self, key: KeyPath, text: str, *, hint: str = "") -> None:
        """Something wrong with a key, or with what is missing below it."""
        line = self._line(key)
        where = f"{self.path}:{line}" + (f": {spell(key)}" if key else "")
        self._errors.append((line, ConfigError(where, text, hint=hint)))

    def add_elsewhere(self, where: str, text: str) -> None:
        """Something wrong in a file that the config names."""
        self._errors.append((1 << 30, ConfigError(where, text)))

    def raise_any(self) -> None:
        """Raises ConfigErrors if there is anything, in the order of the lines."""
        if self._errors:
            raise ConfigErrors([error for _line, error in sorted(self._errors, key=lambda found: found[0])])

    def _line(self, key: KeyPath) -> int:
        """Its own line, or that of the nearest table above it."""
        for size in range(len(key), 0, -1):
            line = self._lines.get(key[:size])
            if line is not None:
                return line
        return 1
