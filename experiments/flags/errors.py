"""Bad input: one line that names the flag, the value got and what is allowed."""

from typing import Any


class UsageError(Exception):
    """Bad input; its text is the one line that the user sees."""


def bad(name: str, value: Any, allowed: str) -> UsageError:
    """The error for a flag whose value is refused after parsing."""
    if isinstance(value, list | tuple):
        value = ",".join(str(v) for v in value)
    return UsageError(f"flag --{name}={value}: {allowed}")
