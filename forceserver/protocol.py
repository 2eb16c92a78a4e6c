"""i-PI's socket protocol, seen from the side that provides forces. No I/O here: bytes in, events out; replies in, bytes out.

The messages themselves, their units and their layout stand in `messages`.

Rules of this file
  1. Everything that decides whether a message is legal stands in `TRANSITIONS`.
  2. While an answer is owed nothing is parsed: i-PI has no word for "busy", so we read no further until we can answer.
  3. No number that the peer sent is trusted before it is checked against a bound: memory is taken after, not before.
  4. A reply leaves only if it answers the request that is owed, in shape, and is finite and symmetric where it must be.
  5. A question is answered before it is asked only where the peer has always asked it, and can ask nothing else.

Theory of operation. i-PI listens and asks; we dial in and answer. A session starts in `NEEDS_INIT`, because only then does i-PI
send INIT, the one message that carries the parameters of the `<ffsocket>` and the batch size. `STATUS` is answered from the state
alone. `POSDATA` brings one structure, or `batch_size` of them, and moves the session to `COMPUTING`; whatever follows in the same
packet (i-PI sends `GETFORCE` along by default) waits in the buffer. The reply moves it to `HAS_DATA`, `GETFORCE` sends it off.

An i-PI that sends GETFORCE along follows each force with a STATUS probe, and moves no atom before it has the answer. That
answer is known beforehand, so `answer_ahead` gives it as soon as the forces have left, in the state `SAID_READY`, where STATUS
is answered by silence. This spares i-PI one turn of its conversation, near a tenth of a step when forces are cheap.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from enum import Enum
from typing import NoReturn

import numpy as np

from forceserver.errors import Disconnected, ProtocolError
from forceserver.messages import (
    HEADER_LENGTH,
    MAX_ATOMS,
    MAX_INIT_LENGTH,
    Event,
    Exit,
    ForceReply,
    ForceRequest,
    Header,
    Initialized,
    encode_reply,
    parse_batch_size,
    parse_header,
    parse_int,
    parse_parameters,
)
from forceserver.structures import FloatArray, is_finite

Parser = Generator[int, bytes, None]

HABIT = 3  # forces in a row that a peer has followed with STATUS, after which we take it that it always does
CELL_LENGTH = 2 * 72  # bytes: a cell and its inverse


class State(Enum):
    NEEDS_INIT = "needs init"
    READY = "ready"
    COMPUTING = "computing"  # a reply is owed; nothing is parsed
    HAS_DATA = "has data"
    SAID_READY = "said to be ready"  # before it was asked
    CLOSED = "closed"

    __hash__ = object.__hash__  # each state is there once; Enum's own hashes its name, in Python


TRANSITIONS: Mapping[State, Mapping[bytes, State]] = {
    State.NEEDS_INIT: {
        Header.STATUS: State.NEEDS_INIT,
        Header.INIT: State.READY,
        Header.EXIT: State.CLOSED,
    },
    State.READY: {
        Header.STATUS: State.READY,
        Header.INIT: State.READY,
        Header.POSDATA: State.COMPUTING,
        Header.EXIT: State.CLOSED,
    },
    State.COMPUTING: {},
    State.HAS_DATA: {
        Header.STATUS: State.HAS_DATA,
        Header.GETFORCE: State.READY,
        Header.EXIT: State.CLOSED,
    },
    State.SAID_READY: {
        Header.STATUS: State.READY,
        Header.EXIT: State.CLOSED,
    },
    State.CLOSED: {},
}

STATUS_ANSWERS: Mapping[State, bytes] = {
    State.NEEDS_INIT: Header.NEEDINIT,
    State.READY: Header.READY,
    State.HAS_DATA: Header.HAVEDATA,
    State.SAID_READY: b"",
}


class Session:
    """One conversation with i-PI. The only stateful object of the protocol.

    Feed it with `receive_data`, take `events`, answer each `ForceRequest` with `reply`, send what `data_to_send` gives.

    Args:
        n_atoms: the atom counts that are expected; any other count is refused before its coordinates are read.
            None accepts whatever is at most `MAX_ATOMS`.
    """

    def __init__(self, n_atoms: frozenset[int] | None = None) -> None:
        self._n_atoms = n_atoms
        self._state = State.NEEDS_INIT
        self._batch_size = 1
        self._pieces: list[bytes] = []  # received and not parsed
        self._n_received = 0  # bytes in them
        self._outgoing = b""
        self._events: list[Event] = []
        self._owed: ForceRequest | None = None
        self._encoded_reply = b""
        self._parser = self._parse()
        self._wanted = next(self._parser)  # bytes that the parser needs before it can go on
        self._at_message_border = True
        self._cell_bytes = b""
        self._cells: FloatArray = np.empty((0, 3, 3))
        self._last_header = b""
        self._asked_before_positions = False
        self._n_probes = 0  # forces that were asked for along with their positions, and followed by STATUS

    def __repr__(self) -> str:
        return f"<Session [{self._state.value}, batch size {self._batch_size}, {self._n_received} bytes waiting]>"

    @property
    def state(self) -> State:
        return self._state

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def is_relied_upon(self) -> bool:
        """Whether an i-PI of single messages would hang, or lose its polling thread, if we left at this moment.

        So it is from HAVEDATA until it has forces and an answer to the STATUS that follows them: of a client that is lost in
        between it reads on for ever, or goes on for ever asking whether it is free. And from READY to positions, if it asked
        before these: nobody catches the broken pipe. Where it waits for an answer to STATUS otherwise, it asks another client.
        """
        if self._state is State.READY:
            return self._asked_before_positions or self._last_header == Header.GETFORCE
        return self._state is State.HAS_DATA

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the peer, cut anywhere.

        Raises:
            ProtocolError: the bytes are not what the protocol allows now.
        """
        self._pieces.append(bytes(data))
        self._n_received += len(data)
        self._advance()

    def receive_eof(self) -> None:
        """The peer closed its end.

        Raises:
            Disconnected: it did so without EXIT, as a killed i-PI does.
        """
        if self._state is State.CLOSED:
            return
        received, wanted, inside = self._n_received, self._wanted, not self._at_message_border
        self._state = State.CLOSED
        if inside or received:
            raise Disconnected(f"i-PI left in the middle of a message: got {received} of {wanted} bytes")
        raise Disconnected("i-PI closed the connection without EXIT")

    def events(self) -> Iterator[Event]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return iter(events)

    def reply(self, reply: ForceReply) -> None:
        """Answer the request that is owed; what i-PI said meanwhile is parsed now.

        Raises:
            BadForces: the reply is not finite, has another shape than the request, or a virial is not symmetric.
            ProtocolError: no request is owed an answer.
        """
        if self._owed is None:
            raise ProtocolError(f"no answer is owed to i-PI (state: {self._state.value})")
        self._encoded_reply = encode_reply(reply, self._owed)
        self._owed = None
        self._state = State.HAS_DATA
        self._advance()

    def data_to_send(self) -> bytes:
        """Bytes that must go to the peer, in order; each call empties the queue."""
        data, self._outgoing = self._outgoing, b""
        return data

    def answer_ahead(self) -> bytes:
        """The answer to a STATUS probe that is bound to come, to be sent once the forces have left; or nothing."""
        if self._n_probes < HABIT or self._state is not State.READY or self._n_received:
            return b""
        if self._last_header != Header.GETFORCE:
            return b""
        self._state = State.SAID_READY
        return Header.READY

    def _advance(self) -> None:
        """Parse what is there, as far as that is allowed; pieces are joined once there is enough for the next step."""
        if self._n_received < self._wanted or not TRANSITIONS[self._state]:
            return
        received = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        begin, end = 0, self._wanted
        try:
            while end <= len(received) and TRANSITIONS[self._state]:
                self._wanted = self._parser.send(received[begin:end])
                begin, end = end, end + self._wanted
        except ProtocolError:
            self._state = State.CLOSED
            raise
        self._pieces = [received[begin:]] if begin < len(received) else []
        self._n_received = len(received) - begin

    def _parse(self) -> Parser:
        """The conversation, top to bottom. Yields the number of bytes that it needs next."""
        while True:
            self._at_message_border = True
            header = yield HEADER_LENGTH
            self._at_message_border = False
            next_state = TRANSITIONS[self._state].get(header)
            if next_state is None:
                self._refuse(header)
            self._learn(header)
            if header == Header.STATUS:
                self._outgoing += STATUS_ANSWERS[self._state]
            elif header == Header.POSDATA:
                yield from self._parse_posdata()
            elif header == Header.GETFORCE:
                self._outgoing += self._encoded_reply  # there: HAS_DATA is entered through `reply` alone
            elif header == Header.INIT:
                yield from self._parse_init()
            elif header == Header.EXIT:
                self._events.append(Exit())
            self._state = next_state

    def _learn(self, header: bytes) -> None:
        """See whether the peer asks for forces without waiting for HAVEDATA, and probes once it has them."""
        if self._last_header == Header.GETFORCE:
            self._n_probes = self._n_probes + 1 if header == Header.STATUS else 0
        elif header == Header.GETFORCE and self._last_header != Header.POSDATA:
            self._n_probes = -1
        self._asked_before_positions = header == Header.STATUS and self._last_header != Header.GETFORCE
        self._last_header = header

    def _refuse(self, data: bytes) -> NoReturn:
        header = parse_header(data)
        allowed = ", ".join(parse_header(word).name for word in TRANSITIONS[self._state]) or "nothing"
        raise ProtocolError(
            f"i-PI sent {header.name} while this end is '{self._state.value}'; allowed: {allowed}"
        )

    def _parse_init(self) -> Parser:
        request_id = parse_int((yield 4))
        length = parse_int((yield 4))
        if not 0 <= length <= MAX_INIT_LENGTH:
            raise ProtocolError(
                f"i-PI announced an INIT string of {length} bytes; at most {MAX_INIT_LENGTH} are accepted"
            )
        text = yield length
        parameters = parse_parameters(text)
        self._batch_size = parse_batch_size(parameters.pop("batch_size", "1"))
        self._events.append(Initialized(request_id, parameters, self._batch_size))

    def _parse_posdata(self) -> Parser:
        """One structure: cell, its inverse, count, positions. A batch: count, all cells and inverses, all positions."""
        n_structures = self._batch_size
        if n_structures == 1:
            cells_and_count = yield CELL_LENGTH + 4
            cells = cells_and_count[:CELL_LENGTH]
            n_atoms = self._checked_n_atoms(parse_int(cells_and_count[CELL_LENGTH:]))
        else:
            n_atoms = self._checked_n_atoms(parse_int((yield 4)))
            cells = yield CELL_LENGTH * n_structures
        positions = yield 24 * n_atoms * n_structures
        if cells != self._cell_bytes:  # most simulations have one cell all their life
            self._cell_bytes = cells
            self._cells = _checked_finite(np.frombuffer(cells, np.float64).reshape(-1, 2, 3, 3)[:, 0])
        request = ForceRequest(
            cells=self._cells,
            positions=_checked_finite(np.frombuffer(positions, np.float64)).reshape(n_structures, n_atoms, 3),
        )
        self._owed = request
        self._events.append(request)

    def _checked_n_atoms(self, n_atoms: int) -> int:
        if self._n_atoms is not None and n_atoms not in self._n_atoms:
            expected = " or ".join(str(count) for count in sorted(self._n_atoms))
            raise ProtocolError(
                f"i-PI sent {n_atoms} atoms, the template has {expected}; start i-PI and the server from the same structure"
            )
        if not 0 < n_atoms * self._batch_size <= MAX_ATOMS:
            raise ProtocolError(
                f"i-PI announced {self._batch_size} x {n_atoms} atoms in one message; between 1 and {MAX_ATOMS} are accepted"
            )
        return n_atoms


def _checked_finite(numbers: FloatArray) -> FloatArray:
    if not is_finite(numbers):
        raise ProtocolError(
            "i-PI sent positions or a cell that are not finite: the run has blown up before this step"
        )
    return numbers
