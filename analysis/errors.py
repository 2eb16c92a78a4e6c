"""Everything that can go wrong in an analysis, named by what the user can do about it.

    AnalysisError           exit code 1
        UnreadableRun       there is nothing to read at the path given, or it is not i-PI's (exit code 2)
        MissingOutput       the run did not write what an estimator needs; the message says which line to add
        TooShort            the run is too short for a number with an error bar

A message says what, what was wanted, what was got, and the remedy. The command line prints it without a traceback.
"""


class AnalysisError(Exception):
    """Base of every error of this package that a user is meant to read."""

    exit_code = 1


class UnreadableRun(AnalysisError):
    """The path holds no i-PI outputs, several runs at once, or bytes that i-PI did not write."""

    exit_code = 2


class MissingOutput(AnalysisError):
    """A column, a trajectory or a fact of the input is not there; everything else can still be computed."""


class TooShort(AnalysisError):
    """There are too few samples for an estimate with an error bar."""
