"""What a run makes of what fails: a line that tells why, and going on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_REASON_END = 150  # characters


@contextmanager
def kept(what: str, skipped: dict[str, str]) -> Iterator[None]:
    """Lets the run go on where ``what`` fails; why it did goes into ``skipped``."""
    try:
        yield
    except Exception as error:  # a GPU that a kernel has left in ruins may raise anything
        skipped[what] = reason_of(error)


def reason_of(error: Exception) -> str:
    """One line; of a long text, as compilers write them, the two ends."""
    text = " ".join(str(error).split())
    if len(text) > 2 * _REASON_END:
        text = f"{text[:_REASON_END]} ... {text[-_REASON_END:]}"
    return f"{type(error).__name__}: {text}"
