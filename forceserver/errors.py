"""Everything that can go wrong, named by whose fault it is.

    ForceServerError            exit code 1 unless said otherwise
        UsageError              what the user typed or wrote cannot be done (exit code 2)
        ModelError              the model cannot do what is asked of it
            BadForces           a result is not finite, has the wrong shape, or is not symmetric where it must be
            OutOfMemory         one single structure does not fit on the device
        PeerError               i-PI, or whoever speaks in its place
            ProtocolError       said something that the protocol does not allow
            Disconnected        left in the middle of a message
            NobodyListening     was not there within the time that we were told to wait

A message says what, what was wanted, what was got, and the remedy. The command line prints it without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from forceserver.structures import Structure


class ForceServerError(Exception):
    """Base of every error that a user is meant to read."""

    exit_code = 1


class UsageError(ForceServerError):
    """The command line, the i-PI input or the template asks for something impossible."""

    exit_code = 2


class ModelError(ForceServerError):
    """The model cannot do what is asked of it: no direct head, an unknown species, a failed evaluation.

    Attributes:
        structure: the one on which it failed, where that is known.
    """

    structure: Structure | None = None

    def on(self, structure: Structure) -> Self:
        """This error, with the structure to which it belongs."""
        self.structure = structure
        return self


class BadForces(ModelError):
    """The model returned something that must never reach i-PI."""


class OutOfMemory(ModelError):
    """Even one structure alone does not fit in the memory of the device."""


class PeerError(ForceServerError):
    """The other end of a connection is at fault."""


class ProtocolError(PeerError):
    """The peer sent bytes that the i-PI protocol does not allow here."""


class Disconnected(PeerError):
    """The peer closed the connection in the middle of a message."""


class NobodyListening(PeerError):
    """No i-PI was listening at the address within the time allowed."""


def one_line(error: BaseException, *, whole: bool = False) -> str:
    """What an exception of somebody else's says, in one line, without a full stop; its type where it says nothing.

    Args:
        error: TorchScript puts the reason into its last line, everybody else into the first.
        whole: all of its lines, joined.
    """
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines) if whole else lines[-1 if "TorchScript" in lines[0] else 0]
    return text.rstrip(".")


def suggest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing when no known word comes near."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""
