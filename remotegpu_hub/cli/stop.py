"""Why the command stops, in one sentence for the person at the terminal."""

from typing import ClassVar


class Stop(Exception):
    """The sentence is printed to stderr, and the command ends with `exit_code`."""

    exit_code: ClassVar[int] = 1


class Refused(Stop):
    """It cannot be done now, or a problem was found."""


class Usage(Stop):
    """The command line is wrong."""

    exit_code = 2
