"""The exceptions that speak to the user."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user asked for.

    The message is one line that names the argument and the nearest valid value. The command line
    prints it without a traceback and exits with code 2; a library caller catches it as a ValueError.
    """


class Resumable(Exception):
    """A run that had to stop and can be continued; the command line says why and exits with `EXIT_RESUMABLE`."""


EXIT_RESUMABLE = 75  # EX_TEMPFAIL of sysexits.h: try again
