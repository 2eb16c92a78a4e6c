"""The fault matrix: what a server that goes wrong, or an i-PI that does, leaves behind. Real processes, deterministic dynamics.

Every cell ends in one claim: the run that is finished by somebody else, from where it was or from its saved state, is the run
that nobody disturbed. `forceserver launch` has tests of its own.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket as sockets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import fake_ipi
from faulty_model import NAP_SECONDS
from forceserver.errors import NobodyListening, PeerError, ProtocolError, UsageError
from forceserver.evaluate import Evaluator
from forceserver.potentials import load_potential
from forceserver.potentials.interface import is_out_of_memory
from forceserver.transport import Dialer, InetAddress, UnixAddress
from launched import (
    TRAP,
    assert_same_run,
    continue_by_hand,
    kill_ipi_with_a_whole_checkpoint,
    last_step,
    restart_step,
    wait_for_step,
    write_run,
)
from peer import Peer, make_server, scripted_ipi
from real_ipi import Socket, Workplace, free_port, workplace

STEPS = 60
SLOWLY = {
    1: "pause=0.01",
    2: "pause=0.15",
}  # s for a force: a signal, or a second server, arrives in the middle of the run
SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"
CELL = np.diag([20.0, 21.0, 22.0])

FORMS = {
    "unix": Socket(),
    "unix, batches": Socket(batch_size=4),
    "unix, plain": Socket(consolidate=False),
    "inet": Socket(mode="inet"),
    "inet, batches": Socket(mode="inet", batch_size=4),
    "inet, plain": Socket(mode="inet", consolidate=False),
}  # i-PI batches consolidated messages only

# What a server does: the line that it ends with, and its exit code.
ORDERLY = {
    "raise": ("the neighbour list is full. The structure is in", 1),
    "nan": ("forces that are not finite (on 1 of 3 atoms)", 1),
    "shape": ("the model returned forces of shape", 1),
    "SIGTERM": ("SIGTERM: stopped between two evaluations; i-PI waits for another server", 143),
    "SIGINT": ("SIGINT: stopped between two evaluations; i-PI waits for another server", 130),
}
READS_NOTHING_FOR_EVER = "Unexpected getforce reply: b''"
SUDDEN = ["SIGKILL", "SIGSTOP", "half a reply"]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with workplace() as place:
        yield place


@pytest.fixture(scope="module")
def reference() -> Iterator[Workplace]:
    """Four beads that nobody disturbed, served by other code."""
    with workplace() as place:
        write_run(place, beads=4, steps=STEPS)
        place.run("harmonic:k=2.0")
        yield place


def start(place: Workplace, form: str, *, timeout_seconds: float = 0.0) -> subprocess.Popen[str]:
    """i-PI on four beads, which drops a server that lets it wait for longer than the timeout (0: never)."""
    socket = FORMS[form]
    if socket.mode == "inet":
        socket = Socket(
            mode="inet", port=free_port(), batch_size=socket.batch_size, consolidate=socket.consolidate
        )
    path = write_run(place, socket, checkpoint=True, beads=4, steps=STEPS)
    path.write_text(
        path.read_text().replace("</ffsocket>", f"<timeout>{timeout_seconds}</timeout></ffsocket>")
    )
    return place.start_ipi()


def start_others(place: Workplace, n_servers: int, form: str) -> list[subprocess.Popen[str]]:
    """Sound servers beside the first one, all connected when this returns."""
    others = [
        place.start_server("harmonic:k=2.0", log=f"other-{number}.log") for number in range(1, n_servers)
    ]
    n_connections = n_servers * 4 // FORMS[form].batch_size
    place.wait_until(
        lambda: place.read("ipi.log").count("Handshaking was successful") >= n_connections, "ipi.log"
    )
    return others


def assert_last_line(place: Workplace, words: str, log: str = "server.log") -> None:
    text = place.read(log)
    assert words in text.rstrip().splitlines()[-1], text
    assert "Traceback" not in text


def finish(place: Workplace, ipi: subprocess.Popen[str], reference: Workplace) -> None:
    """End i-PI as a user does; its state must be valid, and lead to the end of the undisturbed run."""
    ipi.terminate()
    assert ipi.wait(30) == 0, tail(place)
    assert restart_step(place) == last_step(place)
    if restart_step(place) < STEPS:
        continue_by_hand(place)
    assert_same_run(place, reference)


def finish_killed(place: Workplace, ipi: subprocess.Popen[str], reference: Workplace, form: str) -> None:
    """Kill an i-PI that is beyond saving; its checkpoint must lead to the end of the undisturbed run."""
    kill_ipi_with_a_whole_checkpoint(place, ipi.pid)
    assert ipi.wait(10) == -signal.SIGKILL
    assert not (place.path / "RESTART").exists()
    if FORMS[form].mode == "unix":
        (place.path / "s_forces").unlink()  # as i-PI asks for, in its own words
    continue_by_hand(place, "simulation.chk")
    assert_same_run(place, reference)


def tail(place: Workplace, log: str = "ipi.log") -> str:
    """The end of a log that i-PI may have filled with megabytes of one line."""
    return place.read(log)[-4000:]


def cells(quick: set[tuple[str, str, int]], faults: list[str]) -> list[object]:
    """Every form x fault x one or two servers; all but a few are slow."""
    every = [(form, fault, n_servers) for form in FORMS for fault in faults for n_servers in (1, 2)]
    assert quick <= set(every)
    return [pytest.param(*cell, marks=() if cell in quick else pytest.mark.slow) for cell in every]


@pytest.mark.parametrize(
    ("form", "fault", "n_servers"),
    cells({("unix", "nan", 1), ("unix, plain", "SIGTERM", 1)}, list(ORDERLY)),
)
def test_i_pi_goes_on_with_another_server_after_one_that_ends_in_order(
    place: Workplace, reference: Workplace, form: str, fault: str, n_servers: int
) -> None:
    words, code = ORDERLY[fault]
    ipi = start(place, form)
    options = f"{TRAP},{SLOWLY[n_servers]}" + ("" if fault.startswith("SIG") else f",fault={fault},when=now")
    server = place.start_server(options)
    wait_for_step(place, 0)
    others = start_others(place, n_servers, form)
    wait_for_step(place, 3)
    if fault.startswith("SIG"):
        server.send_signal(signal.Signals[fault])
    else:
        (place.path / "now").touch()
    assert server.wait(30) == code, place.read("server.log")
    assert_last_line(place, words)
    others = others or [place.start_server("harmonic:k=2.0", log="other-1.log")]
    assert ipi.wait(60) == 0, place.read("ipi.log")
    assert [other.wait(30) for other in others] == [0]
    assert restart_step(place) == STEPS
    assert_same_run(place, reference)


@pytest.mark.parametrize(
    ("form", "fault", "n_servers"),
    cells({("unix", "SIGKILL", 1)}, SUDDEN),
)
def test_an_i_pi_whose_server_is_gone_saves_a_state_that_continues_the_run(
    place: Workplace, reference: Workplace, form: str, fault: str, n_servers: int
) -> None:
    """i-PI may hang on it, so its user ends it: first the server, where it still is, then i-PI.

    Without consolidated messages it may be beyond that, see the next test: by chance, and seldom.
    """
    ipi = start(place, form)
    options = f"{TRAP},{SLOWLY[n_servers]}" + (
        "" if fault in signal.Signals.__members__ else ",fault=half,when=now"
    )
    server = place.start_server(options)
    wait_for_step(place, 0)  # first come, first asked: without that, all batches might go to the other one
    others = start_others(place, n_servers, form)
    wait_for_step(place, 6)  # one checkpoint
    if fault in signal.Signals.__members__:
        server.send_signal(signal.Signals[fault])
        server.kill()
    else:
        (place.path / "now").touch()
    assert server.wait(10) == -signal.SIGKILL
    ipi.terminate()
    try:
        ipi.wait(30)
    except subprocess.TimeoutExpired:
        assert not FORMS[form].consolidate, tail(place)
        assert READS_NOTHING_FOR_EVER in tail(place)
        finish_killed(place, ipi, reference, form)
    else:
        finish(place, ipi, reference)
    for other in others:
        assert other.wait(30) in (0, 1)  # whether i-PI says EXIT depends on where it hung


@pytest.mark.parametrize(
    "form", ["unix", *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS if form != "unix")]
)
def test_after_bad_forces_a_server_may_dial_again_and_serve_the_run_to_its_end(
    place: Workplace, reference: Workplace, form: str
) -> None:
    """`--on-bad-forces reconnect`, with a model that recovers: i-PI asks again, of the same server or of another."""
    ipi = start(place, form)
    options = f"{TRAP},{SLOWLY[1]},fault=nan,when=now"
    server = place.start_server(options, "-i", "input.xml", "--on-bad-forces", "reconnect")
    wait_for_step(place, 3)
    (place.path / "now").touch()
    place.wait_until(lambda: "i-PI" in place.read("server.log"), "bad-structure-1.xyz")
    (place.path / "now").unlink()
    assert server.wait(60) == 0, place.read("server.log")
    assert ipi.wait(30) == 0, tail(place)
    assert_same_run(place, reference)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["unix, plain", "inet, plain"])
def test_an_i_pi_that_was_promised_forces_by_a_server_that_is_gone_must_be_killed_and_has_a_checkpoint(
    place: Workplace, reference: Workplace, form: str
) -> None:
    """A defect of i-PI 3.3 without consolidated messages, which no server can avoid: only make the moment short.

    The thread that collects the forces (`Driver._recv_forceready`) takes the end of the stream for an odd answer, and asks
    again for ever. Another connection of the same server makes the polling thread wait for that one, and the polling thread is
    what a SIGTERM waits for before RESTART is written.
    """
    ipi = start(place, form)
    server = place.start_server(f"{TRAP},{SLOWLY[1]},fault=death,when=now")
    wait_for_step(place, 6)
    (place.path / "now").touch()
    assert server.wait(30) == -signal.SIGKILL
    ipi.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        ipi.wait(5)
    assert READS_NOTHING_FOR_EVER in tail(place)
    finish_killed(place, ipi, reference, form)


@pytest.mark.parametrize(
    ("form", "fault", "n_servers"),
    cells({("inet, batches", "SIGKILL", 1)}, ["SIGTERM", "SIGKILL"]),
)
def test_servers_end_with_their_i_pi_and_the_run_goes_on_from_its_state(
    place: Workplace, reference: Workplace, form: str, fault: str, n_servers: int
) -> None:
    ipi = start(place, form)
    server = place.start_server(f"{TRAP},{SLOWLY[n_servers]}")
    wait_for_step(place, 0)
    servers = [server, *start_others(place, n_servers, form)]
    wait_for_step(place, 12)  # two checkpoints
    killed = fault == "SIGKILL"
    if killed:
        kill_ipi_with_a_whole_checkpoint(place, ipi.pid)
    else:
        ipi.send_signal(signal.Signals[fault])
    assert ipi.wait(30) == (-signal.SIGKILL if killed else 0)
    assert [each.wait(15) for each in servers] == [1 if killed else 0] * n_servers
    if killed:
        assert_last_line(place, "a RESTART file, if there is one, continues the run")
        log = place.read("server.log")  # how the end is noticed depends on what was under way
        assert "i-PI closed the connection" in log or "i-PI left in the middle of a message" in log
        if FORMS[form].mode == "unix":
            (place.path / "s_forces").unlink()  # as i-PI asks for, in its own words
        continue_by_hand(place, "simulation.chk")
        assert_same_run(place, reference)
    else:
        finish(place, ipi, reference)


@pytest.mark.parametrize(
    ("form", "n_servers"),
    [
        ("unix", 1),
        *(
            pytest.param(form, n_servers, marks=pytest.mark.slow)
            for form, n_servers in [("inet", 1), ("unix, batches", 1), ("inet, batches", 1), ("unix", 2), ("inet", 2)]
        ),
    ],
)  # fmt: skip
def test_an_i_pi_that_drops_a_server_at_its_timeout_gets_the_right_forces_from_it_later_or_from_another(
    place: Workplace, reference: Workplace, form: str, n_servers: int
) -> None:
    """One evaluation takes three times as long as i-PI waits for; what it gave is worth nothing any more.

    A server that is alone dials again. Where there is another, that one has finished the run meanwhile.
    """
    ipi = start(place, form, timeout_seconds=NAP_SECONDS / 3)
    server = place.start_server(f"{TRAP},{SLOWLY[n_servers]},fault=nap,when=now")
    wait_for_step(place, 0)
    others = start_others(place, n_servers, form)
    wait_for_step(place, 3)
    (place.path / "now").touch()
    assert ipi.wait(90) == 0, place.read("ipi.log")
    assert [each.wait(30) for each in (server, *others)] == [0] * n_servers, place.read("server.log")
    assert "died or got unresponsive(A). Disconnecting." in place.read("ipi.log")
    if n_servers == 1:
        n_handshakes = 4 // FORMS[form].batch_size
        assert place.read("ipi.log").count("Handshaking was successful") > n_handshakes
    assert "Traceback" not in place.read("server.log")
    assert restart_step(place) == STEPS
    assert_same_run(place, reference)


@pytest.mark.parametrize("form", ["unix", pytest.param("inet, batches", marks=pytest.mark.slow)])
def test_a_batch_that_does_not_fit_is_split_and_the_run_goes_on(
    place: Workplace, reference: Workplace, form: str
) -> None:
    ipi = start(place, form)
    server = place.start_server(f"{TRAP},fits=2")
    assert server.wait(60) == 0, place.read("server.log")
    assert ipi.wait(30) == 0
    assert "out of memory with 4 structures; from now on at most 6 atoms in one call" in place.read(
        "server.log"
    )
    assert_same_run(place, reference)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_one_structure_that_does_not_fit_ends_the_service_in_one_line(
    place: Workplace, reference: Workplace, form: str
) -> None:
    ipi = start(place, form)
    server = place.start_server(f"{TRAP},fits=0")
    assert server.wait(60) == 1
    assert_last_line(place, "one structure of 3 atoms does not fit in the memory of cpu")
    assert place.start_server("harmonic:k=2.0", log="other-1.log").wait(60) == 0
    assert ipi.wait(30) == 0
    assert_same_run(place, reference)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_another_atom_count_is_refused_and_i_pi_goes_on_with_a_server_that_knows_it(
    place: Workplace, reference: Workplace, form: str
) -> None:
    ipi = start(place, form)
    smaller = place.path / "smaller.xyz"
    smaller.write_text(
        "2\nLattice='10 0 0 0 10 0 0 0 10' Properties=species:S:1:pos:R:3\nO 0 0 0\nH 1 0 0\n".replace(
            "'", '"'
        )
    )
    address = str(place.path / "s_forces")
    if FORMS[form].mode == "inet":
        port = place.read("input.xml").split("<port>")[1].split("<")[0]
        address = f"localhost:{port}"
    server = place.start_server("harmonic:k=2.0", "-a", address, "-t", "smaller.xyz")
    assert server.wait(60) == 1
    assert_last_line(
        place, "i-PI sent 3 atoms, the template has 2; start i-PI and the server from the same structure"
    )
    assert place.start_server("harmonic:k=2.0", log="other-1.log").wait(60) == 0
    assert ipi.wait(30) == 0
    assert_same_run(place, reference)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "words"), [("unix", "Check if a file"), ("inet", "Address already in use")])
def test_a_second_simulation_on_an_address_in_use_ends_by_itself_and_the_first_goes_on(
    place: Workplace, reference: Workplace, form: str, words: str
) -> None:
    ipi = start(place, form)
    server = place.start_server(f"{TRAP},{SLOWLY[1]}")
    wait_for_step(place, 3)
    (place.path / "second").mkdir()
    for name in ("input.xml", "structure.xyz"):
        (place.path / "second" / name).write_text(place.read(name))
    second = Workplace(place.path / "second")
    assert second.start_ipi().wait(30) != 0
    assert words in second.read("ipi.log")
    assert (ipi.wait(60), server.wait(30)) == (0, 0)
    assert_same_run(place, reference)


def test_a_socket_file_that_was_left_behind_is_named_while_waiting(place: Workplace) -> None:
    """As an i-PI does that was killed: bound, and nobody listens."""
    write_run(place)
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(place.path / "s_forces"))
    server = place.start_server("harmonic:k=2.0", "-i", "input.xml", "--wait", "2")
    assert server.wait(60) == 1
    assert "a file is there, but nobody listens: left behind by an i-PI that was killed?" in place.read(
        "server.log"
    )
    assert_last_line(place, "nobody listens at")


@pytest.mark.slow
def test_a_minute_at_the_highest_rate_leaks_neither_memory_nor_descriptors(tmp_path: Path) -> None:
    """Allowed is 1 MiB over thousands of requests; an array kept of each (4.6 kB) would be more after three hundred."""
    report = tmp_path / "soak.json"
    command = [sys.executable, SOAK, "--minutes", "1", "--interval", "2", "--output", report]
    subprocess.run(command, check=True, timeout=250, stdout=subprocess.DEVNULL)
    found = json.loads(report.read_text())
    assert found["force_requests"] > 1000
    memory, descriptors = (found["trends"][f"server_{name}"] for name in ("memory_MiB", "descriptors"))
    assert memory["last_quarter"] < memory["first_quarter"] + 1.0
    assert descriptors["last_quarter"] == descriptors["first_quarter"]


# The other end of a socket that says what i-PI would not.

TRAP_MODEL = load_potential("harmonic:k=2.0")


def served_by(address: UnixAddress | InetAddress, **changes: object) -> None:
    make_server(address, Evaluator({"default": TRAP_MODEL}), [1, 8], **changes).run()  # type: ignore[arg-type]


def test_a_peer_that_leaves_in_the_middle_of_a_message_is_told_by_its_bytes() -> None:
    message = fake_ipi.posdata(np.zeros((2, 3)), CELL)

    def say_half(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].send(message[: 12 + 144 + 4 + 20])

    with scripted_ipi(say_half) as address, pytest.raises(PeerError, match="got 20 of 48 bytes"):
        served_by(address)


def test_a_peer_that_falls_silent_in_the_middle_of_a_message_does_not_keep_the_server_from_stopping() -> None:
    silent = threading.Event()

    def say_half(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].send(fake_ipi.posdata(np.zeros((2, 3)), CELL)[:100])
        silent.set()
        assert peers[0].receive(1) == b""

    with scripted_ipi(say_half) as address:
        server = make_server(address, Evaluator({"default": TRAP_MODEL}), [1, 8])
        thread = threading.Thread(target=server.run)
        thread.start()
        assert silent.wait(20)
        server._stop.request("SIGTERM")
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(params=[0, 1024], ids=["few files", "many files"])
def other_open_files(request: pytest.FixtureRequest) -> Iterator[None]:
    """The next descriptor is then one that `select.select` does not take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if request.param and hard < 2048:
        pytest.skip(f"the system allows no more than {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    descriptors = [os.open(os.devnull, os.O_RDONLY) for _ in range(request.param)]
    yield
    for each in descriptors:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("other_open_files")
def test_forces_that_were_promised_are_delivered_before_the_server_stops() -> None:
    """Without consolidated messages i-PI asks first (HAVEDATA) and collects later, and waits for ever on who left in between."""
    servers = []

    def stop_in_between(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].send(fake_ipi.posdata(np.ones((2, 3)), CELL) + fake_ipi.STATUS)
        assert peers[0].receive(12) == fake_ipi.HAVEDATA
        servers[0]._stop.request("SIGTERM")
        peers[0].send(fake_ipi.STATUS)
        assert peers[0].receive(12) == fake_ipi.HAVEDATA
        peers[0].send(fake_ipi.GETFORCE)
        _, forces, _ = peers[0].hear_forces(2)
        assert (forces < 0).all()
        peers[0].send(
            fake_ipi.STATUS
        )  # to know whether the client is free: of one that is lost now it is asked for ever
        assert peers[0].receive(12) == fake_ipi.READY
        assert peers[0].receive(1) == b""

    with scripted_ipi(stop_in_between) as address:
        servers.append(make_server(address, Evaluator({"default": TRAP_MODEL}), [1, 8]))
        servers[0].run()


def test_positions_that_are_about_to_come_are_taken_before_the_server_stops() -> None:
    """They follow at once on READY. Without consolidated messages a broken pipe there ends the polling thread of i-PI."""
    servers = []

    def stop_in_between(peers: list[Peer]) -> None:
        peers[0].handshake()
        servers[0]._stop.request("SIGTERM")
        time.sleep(0.3)
        peers[0].send(fake_ipi.posdata(np.ones((2, 3)), CELL))
        peers[0].send(fake_ipi.STATUS)
        assert peers[0].receive(1) == b""  # which i-PI takes for a lost client, and asks another

    with scripted_ipi(stop_in_between) as address:
        servers.append(make_server(address, Evaluator({"default": TRAP_MODEL}), [1, 8]))
        servers[0].run()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (fake_ipi.header("posdata") + bytes(144) + np.int32(2**31 - 1).tobytes(), "i-PI sent 2147483647 atoms"),
        (fake_ipi.header("posdata") + bytes(144) + np.int32(-1).tobytes(), "i-PI sent -1 atoms"),
        (fake_ipi.init("batch_size:2147483647"), "batch size of '2147483647'"),
        (fake_ipi.header("init") + np.array([0, 2**31 - 1], np.int32).tobytes(), "INIT string of 2147483647 bytes"),
    ],
    ids=["atoms", "negative", "batch", "init"],
)  # fmt: skip
def test_a_size_that_nobody_has_is_refused_before_memory_is_taken(said: bytes, words: str) -> None:
    def exaggerate(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].send(said)
        assert peers[0].receive(1) == b""

    before_KiB = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with scripted_ipi(exaggerate) as address, pytest.raises(ProtocolError, match=words):
        served_by(address)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_KiB < 100 * 1024


def test_a_host_that_cannot_be_reached_is_given_up_in_time_and_a_name_without_host_at_once() -> None:
    with pytest.raises(NobodyListening, match="nobody listens at localhost:"):
        served_by(InetAddress("localhost", free_port()), wait_seconds=0.3)
    with pytest.raises(UsageError, match=r"host of no\.such\.host\.invalid:31415 not found"):
        served_by(InetAddress("no.such.host.invalid", 31415), wait_seconds=0.3)


def test_a_server_that_queued_for_an_i_pi_that_is_gone_does_not_wait_for_the_next_one(tmp_path: Path) -> None:
    address = UnixAddress(f"{os.path.relpath(tmp_path)}/s")
    listener = sockets.socket(sockets.AF_UNIX)
    listener.bind(address.path)
    listener.listen(0)
    first = Dialer(address).attempt()  # fills the queue
    assert first is not None
    server = make_server(address, Evaluator({"default": TRAP_MODEL}), [1, 8], wait_seconds=60.0)
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            server.run()
        except NobodyListening as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    (endpoint,) = server._simulations[0].endpoints
    while not endpoint._dialer.is_queueing:
        pass
    listener.close()
    Path(address.path).unlink()
    first.close()
    thread.join(10)
    assert not thread.is_alive()
    assert failures


def test_memory_that_is_exhausted_is_recognised_in_the_words_of_a_cpu_and_of_torchscript() -> None:
    for allocate in (torch.zeros, torch.jit.script(_allocate)):
        with pytest.raises(RuntimeError) as caught:
            allocate(10**14)
        assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def _allocate(n: int) -> torch.Tensor:
    return torch.zeros([n])
