"""The one exception that speaks to the user."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user asked for.

    The message is one line that names the argument and the nearest valid value. The command line
    prints it without a traceback and exits with code 2; a library caller catches it as a ValueError.
    """
