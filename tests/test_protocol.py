"""The session against transcripts of i-PI, cut anywhere, and against garbage."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fake_ipi
from forceserver.errors import BadForces, Disconnected, ProtocolError
from forceserver.messages import MAX_ATOMS, Exit, ForceReply, ForceRequest, Initialized
from forceserver.protocol import HABIT, Session, State

CELL = np.array([[10.0, 1.0, 2.0], [0.0, 11.0, 3.0], [0.0, 0.0, 12.0]])


def random_positions(n_structures: int, n_atoms: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_structures, n_atoms, 3))


def reply_to(request: ForceRequest) -> ForceReply:
    """A recognisable answer: every number depends on the request."""
    sums = request.positions.sum(axis=(1, 2))
    virials = np.eye(3) * sums[:, None, None]
    return ForceReply(sums, -request.positions, virials, tuple(f'{{"sum": {value}}}' for value in sums))


def expected_bytes(positions: np.ndarray) -> bytes:
    reply = reply_to(ForceRequest(np.stack([CELL] * len(positions)), positions))
    return fake_ipi.forceready(reply.energies, reply.forces, reply.virials, list(reply.extras))


def converse(session: Session, chunks: list[bytes]) -> tuple[bytes, list[str]]:
    """Feed chunks, answer what is asked, and return what was sent and the kinds of events seen."""
    sent, events = b"", []
    for chunk in chunks:
        session.receive_data(chunk)
        while pending := list(session.events()):
            for event in pending:
                events.append(type(event).__name__)
                if isinstance(event, ForceRequest):
                    session.reply(reply_to(event))
        sent += session.data_to_send()
    return sent, events


def classic_transcript(n_atoms: int = 2) -> tuple[bytes, bytes]:
    positions = random_positions(1, n_atoms)
    received = (
        fake_ipi.STATUS + fake_ipi.STATUS + fake_ipi.init() + fake_ipi.STATUS
        + fake_ipi.posdata(positions[0], CELL) + fake_ipi.STATUS + fake_ipi.GETFORCE
        + fake_ipi.STATUS + fake_ipi.EXIT
    )  # fmt: skip
    sent = (
        fake_ipi.NEEDINIT * 2
        + fake_ipi.READY
        + fake_ipi.HAVEDATA
        + expected_bytes(positions)
        + fake_ipi.READY
    )
    return received, sent


def consolidated_transcript(n_atoms: int = 3, n_steps: int = 2) -> tuple[bytes, bytes]:
    received = fake_ipi.STATUS * 2 + fake_ipi.init(" forces : direct , , ") + fake_ipi.STATUS
    sent = fake_ipi.NEEDINIT * 2 + fake_ipi.READY
    for step in range(n_steps):
        positions = random_positions(1, n_atoms, seed=step)
        received += fake_ipi.posdata(positions[0], CELL) + fake_ipi.GETFORCE + fake_ipi.STATUS
        sent += expected_bytes(positions) + fake_ipi.READY
    return received + fake_ipi.EXIT, sent


def batched_transcript(n_atoms: int = 2, batch_size: int = 3) -> tuple[bytes, bytes]:
    positions = random_positions(batch_size, n_atoms)
    received = (
        fake_ipi.STATUS + fake_ipi.init(f" forces : direct , model : a.pt , , batch_size:{batch_size}") + fake_ipi.STATUS
        + fake_ipi.posdata_batch(positions, np.stack([CELL] * batch_size)) + fake_ipi.GETFORCE + fake_ipi.STATUS + fake_ipi.EXIT
    )  # fmt: skip
    return received, fake_ipi.NEEDINIT + fake_ipi.READY + expected_bytes(positions) + fake_ipi.READY


TRANSCRIPTS = {
    "classic": classic_transcript,
    "consolidated": consolidated_transcript,
    "batched": batched_transcript,
}


@pytest.mark.parametrize("form", TRANSCRIPTS)
def test_every_cut_of_a_transcript_gives_the_same_answers(form: str) -> None:
    received, wanted = TRANSCRIPTS[form]()
    for cut in range(len(received) + 1):
        sent, _ = converse(Session(), [received[:cut], received[cut:]])
        assert sent == wanted, f"cut at byte {cut}"


@pytest.mark.parametrize("form", TRANSCRIPTS)
def test_a_transcript_fed_one_byte_at_a_time_gives_the_same_answers(form: str) -> None:
    received, wanted = TRANSCRIPTS[form]()
    sent, events = converse(Session(), [received[i : i + 1] for i in range(len(received))])
    assert sent == wanted
    assert events[0] == "Initialized"
    assert events[-1] == "Exit"


def test_structures_arrive_as_they_were_sent_columns_and_all() -> None:
    positions = random_positions(3, 4)
    cells = np.stack([CELL, 2 * CELL, 3 * CELL])
    session = Session()
    session.receive_data(fake_ipi.init("batch_size:3") + fake_ipi.posdata_batch(positions, cells))
    initialized, request = session.events()
    assert isinstance(initialized, Initialized)
    assert isinstance(request, ForceRequest)
    np.testing.assert_array_equal(request.positions, positions)
    np.testing.assert_array_equal(request.cells, cells)


@pytest.mark.parametrize(
    ("text", "parameters", "batch_size"),
    [
        (" ", {}, 1),
        (" force : direct , model : a.pt , , batch_size:3", {"force": "direct", "model": "a.pt"}, 3),
        ("forces: blended, direct_fraction: 0.25", {"forces": "blended", "direct_fraction": "0.25"}, 1),
        ("model : mace:some/file.pt", {"model": "mace:some/file.pt"}, 1),
        ("", {}, 1),
    ],
)
def test_init_parameters_are_read_as_i_pi_writes_them(
    text: str, parameters: dict[str, str], batch_size: int
) -> None:
    session = Session()
    session.receive_data(fake_ipi.init(text, request_id=7))
    assert list(session.events()) == [Initialized(7, parameters, batch_size)]
    assert session.state is State.READY


def test_nothing_is_parsed_while_an_answer_is_owed() -> None:
    session = Session()
    session.receive_data(
        fake_ipi.init() + fake_ipi.posdata(random_positions(1, 1)[0], CELL) + fake_ipi.STATUS
    )
    _, request = session.events()
    assert session.state is State.COMPUTING
    session.receive_data(fake_ipi.GETFORCE)
    assert session.data_to_send() == b""
    session.reply(reply_to(request))
    assert session.data_to_send().startswith(fake_ipi.HAVEDATA + fake_ipi.FORCEREADY)


@pytest.mark.parametrize(
    "received",
    [
        fake_ipi.posdata(np.zeros((1, 3)), CELL),
        fake_ipi.GETFORCE,
        fake_ipi.init() + fake_ipi.GETFORCE,
        fake_ipi.init() + fake_ipi.header("needinit"),
        fake_ipi.init() + b"HTTP/1.1 200",
        fake_ipi.header("init") + np.array([0, -1], np.int32).tobytes(),
        fake_ipi.header("init") + np.array([0, 2**31 - 1], np.int32).tobytes(),
        fake_ipi.init("batch_size:0"),
        fake_ipi.init("batch_size:many"),
        fake_ipi.header("init") + np.array([0, 2], np.int32).tobytes() + b"\xff\xfe",
    ],
)
def test_what_the_protocol_does_not_allow_is_the_fault_of_the_peer(received: bytes) -> None:
    session = Session()
    with pytest.raises(ProtocolError):
        session.receive_data(received)
    assert session.state is State.CLOSED
    session.receive_data(fake_ipi.STATUS)  # a dead session stays silent
    assert session.data_to_send() == b""


@pytest.mark.parametrize("n_atoms", [-1, 0, MAX_ATOMS + 1, 2**31 - 1])
def test_an_absurd_atom_count_is_refused_before_memory_is_taken(n_atoms: int) -> None:
    message = fake_ipi.init() + fake_ipi.header("posdata") + bytes(144) + np.int32(n_atoms).tobytes()
    with pytest.raises(ProtocolError, match="atoms"):
        Session().receive_data(message)


def test_a_batch_counts_towards_the_bound() -> None:
    message = (
        fake_ipi.init("batch_size:1000") + fake_ipi.header("posdata") + np.int32(MAX_ATOMS // 100).tobytes()
    )
    with pytest.raises(ProtocolError, match="1000 x"):
        Session().receive_data(message)


def test_another_atom_count_than_the_template_is_named() -> None:
    session = Session(n_atoms=frozenset({192}))
    with pytest.raises(ProtocolError, match="3 atoms, the template has 192"):
        session.receive_data(fake_ipi.init() + fake_ipi.posdata(np.zeros((3, 3)), CELL))


def test_positions_that_are_not_finite_never_reach_a_model() -> None:
    positions = np.full((2, 3), np.nan)
    with pytest.raises(ProtocolError, match="not finite"):
        Session().receive_data(fake_ipi.init() + fake_ipi.posdata(positions, CELL))


def test_an_i_pi_of_single_messages_is_left_only_where_it_can_lose_a_client() -> None:
    session = Session()
    positions = fake_ipi.posdata(random_positions(1, 2)[0], CELL)
    relied_upon = []
    for said in (
        fake_ipi.STATUS, fake_ipi.init(), fake_ipi.STATUS, positions,  # and the answer
        fake_ipi.STATUS, fake_ipi.GETFORCE, fake_ipi.STATUS,  # it is free
        fake_ipi.STATUS, positions,
    ):  # fmt: skip
        session.receive_data(said)
        relied_upon.append(session.is_relied_upon)
        if said == positions and len(relied_upon) == 4:
            session.reply(reply_to(next(each for each in session.events() if isinstance(each, ForceRequest))))
    assert relied_upon == [False, False, True, False, True, True, False, True, False]


def asked_session() -> Session:
    session = Session()
    session.receive_data(fake_ipi.init() + fake_ipi.posdata(np.zeros((2, 3)), CELL) + fake_ipi.GETFORCE)
    return session


def changed(**arrays: np.ndarray) -> ForceReply:
    good = {"energies": np.zeros(1), "forces": np.zeros((1, 2, 3)), "virials": np.zeros((1, 3, 3))}
    return ForceReply(**(good | arrays))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        changed(energies=np.array([np.nan])),
        changed(forces=np.full((1, 2, 3), np.inf)),
        changed(virials=np.full((1, 3, 3), np.nan)),
        changed(forces=np.zeros((1, 3, 3))),
        changed(energies=np.zeros(2)),
        changed(virials=np.array([[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])),
    ],
)
def test_a_bad_reply_never_leaves(bad: ForceReply) -> None:
    session = asked_session()
    with pytest.raises(BadForces):
        session.reply(bad)
    assert session.data_to_send() == b""


def test_a_reply_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no answer is owed"):
        Session().reply(changed())


def test_the_end_of_the_stream_is_quiet_after_exit_only() -> None:
    session = Session()
    session.receive_data(fake_ipi.EXIT)
    assert list(session.events()) == [Exit()]
    session.receive_eof()
    with pytest.raises(Disconnected, match="without EXIT"):
        Session().receive_eof()
    half = Session()
    half.receive_data(fake_ipi.init() + fake_ipi.posdata(np.zeros((2, 3)), CELL)[:100])
    with pytest.raises(Disconnected, match="middle of a message"):
        half.receive_eof()


steps = st.lists(
    st.tuples(
        st.sampled_from(["status", "init", "single", "batch", "probe"]),
        st.integers(1, 4),
        st.integers(1, 5),
    ),
    max_size=12,
)


def legal_conversation(plan: list[tuple[str, int, int]]) -> tuple[bytes, bytes]:
    """What i-PI would say on this plan, and what it must hear. Written from i-PI's side, without our tables."""
    received, sent, initialized, batch_size = b"", b"", False, 1
    for seed, (action, size, n_atoms) in enumerate(plan):
        if action == "status":
            received += fake_ipi.STATUS
            sent += fake_ipi.READY if initialized else fake_ipi.NEEDINIT
        elif action == "init" or not initialized:
            batch_size, initialized = size, True
            received += fake_ipi.init(f" a : b , , batch_size:{size}" if size > 1 else " ")
        else:
            positions = random_positions(batch_size, n_atoms, seed)
            single = batch_size == 1
            received += (
                fake_ipi.posdata(positions[0], CELL)
                if single
                else fake_ipi.posdata_batch(positions, np.stack([CELL] * batch_size))
            )
            if action == "probe":
                received += fake_ipi.STATUS
                sent += fake_ipi.HAVEDATA
            received += fake_ipi.GETFORCE
            sent += expected_bytes(positions)
    return received, sent


@settings(deadline=None, max_examples=200)
@given(plan=steps, cuts=st.lists(st.integers(0, 10_000), max_size=20))
def test_any_legal_conversation_cut_anywhere_is_answered_rightly(
    plan: list[tuple[str, int, int]], cuts: list[int]
) -> None:
    received, wanted = legal_conversation(plan)
    borders = sorted({0, len(received), *(cut % (len(received) + 1) for cut in cuts)})
    chunks = [received[start:end] for start, end in pairwise(borders)]
    sent, _ = converse(Session(), chunks)
    assert sent == wanted


words = st.sampled_from(
    [fake_ipi.STATUS, fake_ipi.GETFORCE, fake_ipi.EXIT, fake_ipi.init(), fake_ipi.init("batch_size:2"),
     fake_ipi.posdata(np.zeros((1, 3)), CELL), fake_ipi.READY]
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(pieces=st.lists(st.one_of(st.binary(max_size=64), words), max_size=15))
def test_garbage_never_hangs_crashes_or_gets_forces_that_were_not_asked_for(pieces: list[bytes]) -> None:
    session = Session()
    n_forceready, n_requests = 0, 0
    try:
        for piece in pieces:
            sent, events = converse(session, [piece])
            n_forceready += sent.count(fake_ipi.FORCEREADY)
            n_requests += events.count("ForceRequest")
        session.receive_eof()
    except (ProtocolError, Disconnected):
        assert session.state is State.CLOSED
    assert n_forceready <= n_requests
    session.receive_data(
        b"".join(pieces)
    )  # whatever state it is in, it takes more without crashing, or says whose fault it is


def consolidated_exchange(session: Session, *, probe: bool) -> bytes:
    """One force of an i-PI that does not wait for HAVEDATA; what it hears until its next request."""
    sent, _ = converse(session, [fake_ipi.posdata(np.zeros((1, 3)), CELL) + fake_ipi.GETFORCE])
    sent += session.answer_ahead()
    if probe:
        sent += converse(session, [fake_ipi.STATUS])[0]
    return sent


def test_a_probe_that_has_always_come_is_answered_ahead_and_then_in_silence() -> None:
    session = Session()
    session.receive_data(fake_ipi.init())
    for _ in range(HABIT):
        assert consolidated_exchange(session, probe=True).count(fake_ipi.READY) == 1
    for _ in range(3):
        wanted = expected_bytes(np.zeros((1, 1, 3))) + fake_ipi.READY
        assert consolidated_exchange(session, probe=False) == wanted
        assert session.answer_ahead() == b""  # once is enough
        assert converse(session, [fake_ipi.STATUS])[0] == b""
        assert session.answer_ahead() == b""  # nothing is bound to come now
    assert converse(session, [fake_ipi.STATUS])[0] == fake_ipi.READY  # another one is a question as ever


def test_nothing_is_answered_ahead_to_a_peer_without_the_habit() -> None:
    silent = Session()
    silent.receive_data(fake_ipi.init())
    sent = b"".join(consolidated_exchange(silent, probe=False) for _ in range(2 * HABIT))
    assert fake_ipi.READY not in sent
    classic = Session()
    classic.receive_data(fake_ipi.init())
    for _ in range(2 * HABIT):
        posdata = fake_ipi.posdata(np.zeros((1, 3)), CELL)
        converse(classic, [posdata + fake_ipi.STATUS + fake_ipi.GETFORCE])
        assert classic.answer_ahead() == b""
        assert converse(classic, [fake_ipi.STATUS])[0] == fake_ipi.READY


def test_who_was_answered_ahead_may_leave_and_may_ask_for_nothing_before_the_probe() -> None:
    session, other = Session(), Session()
    for each in (session, other):
        each.receive_data(fake_ipi.init())
        for _ in range(HABIT):
            consolidated_exchange(each, probe=True)
        consolidated_exchange(each, probe=False)
        assert each.state is State.SAID_READY
    assert converse(session, [fake_ipi.EXIT])[1] == ["Exit"]
    with pytest.raises(ProtocolError, match="said to be ready"):
        other.receive_data(fake_ipi.posdata(np.zeros((1, 3)), CELL))


@settings(deadline=None, max_examples=100)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=20), n_steps=st.integers(1, 8))
def test_answering_ahead_never_changes_what_is_heard_in_the_end(cuts: list[int], n_steps: int) -> None:
    received, wanted = consolidated_transcript(n_steps=n_steps)
    borders = sorted({0, len(received), *(cut % (len(received) + 1) for cut in cuts)})
    session, heard = Session(), b""
    for start, end in pairwise(borders):
        heard += converse(session, [received[start:end]])[0]
        heard += session.answer_ahead()
    assert heard == wanted


def test_repr_is_a_status_line() -> None:
    assert repr(Session()) == "<Session [needs init, batch size 1, 0 bytes waiting]>"
