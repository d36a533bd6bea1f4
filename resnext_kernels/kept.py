"""What is found out in a call and kept for the next one like it."""

from __future__ import annotations

from typing import TypeVar

Value = TypeVar("Value")


class Kept(dict[tuple, Value]):
    """A dict that starts anew where it would grow without end, as shapes may."""

    most = 4096

    def keep(self, key: tuple, value: Value) -> Value:
        """Store and return ``value``."""
        if len(self) >= self.most:
            self.clear()
        self[key] = value
        return value
