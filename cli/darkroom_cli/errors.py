"""What a person at the keyboard has done wrong or has to do: told without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A problem whose text says what was given, what is allowed and what to do; the whole message."""
