"""The server against a scripted i-PI that goes wrong, or with a model that does: what is said, and what never leaves."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import fake_ipi
from forceserver.errors import (
    BadForces,
    ModelError,
    NobodyListening,
    PeerError,
    ProtocolError,
    UsageError,
)
from forceserver.evaluate import Evaluator
from forceserver.potentials.interface import Batch, Evaluation
from forceserver.structures import ForceKind
from forceserver.transport import Dialer, Stream, UnixAddress
from peer import Peer, count_selects, make_server, scripted_ipi
from spring import BOHR, CELL, Spring


@pytest.mark.parametrize("spoil", ["energy", "forces", "virial", "shape"])
def test_nothing_bad_reaches_i_pi_and_the_structure_is_written(spoil: str, tmp_path: Path) -> None:
    positions = np.random.default_rng(4).normal(size=(2, 3))

    def script(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].ask(positions, CELL)
        assert peers[0].receive(12) == b""  # an orderly end, not a reset, and not one byte of an answer

    with scripted_ipi(script) as address:
        server = make_server(
            address, Evaluator({"default": Spring(spoil=spoil)}, dump_directory=tmp_path), [1, 8]
        )
        with pytest.raises(ModelError, match=r"bad-structure-1\.xyz"):
            server.run()
    import ase.io

    atoms = ase.io.read(tmp_path / "bad-structure-1.xyz")
    assert atoms.get_chemical_symbols() == ["H", "O"]
    np.testing.assert_allclose(atoms.positions, positions / BOHR, rtol=1e-15)


def test_another_atom_count_than_the_template_ends_the_service() -> None:
    def script(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].ask(np.zeros((3, 3)), CELL)
        assert peers[0].receive(1) == b""

    with scripted_ipi(script) as address:
        server = make_server(address, Evaluator({"default": Spring()}), [1, 1])
        with pytest.raises(ProtocolError, match="3 atoms, the template has 2"):
            server.run()


def test_a_peer_that_leaves_without_exit_is_an_error_that_says_so() -> None:
    with scripted_ipi(lambda peers: peers[0].handshake()) as address:
        server = make_server(address, Evaluator({"default": Spring()}), [1])
        with pytest.raises(PeerError, match="without EXIT"):
            server.run()


def test_an_i_pi_that_takes_the_connection_back_and_never_speaks_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("forceserver.endpoint.GREETING_SECONDS", 0.2)
    with scripted_ipi(lambda peers: peers[0].handshake(), keep_listening=True) as address:
        server = make_server(address, Evaluator({"default": Spring()}), [1])
        with pytest.raises(PeerError, match="it hangs"):
            server.run()


@pytest.mark.parametrize("with_exit", [True, False], ids=["EXIT", "no EXIT"])
def test_an_i_pi_that_drops_us_and_takes_us_back_is_served_on(with_exit: bool) -> None:
    """As after its <timeout>: it says EXIT (or just closes), and its socket still listens."""
    with tempfile.TemporaryDirectory(prefix="fs-") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen(1)
        heard = []

        def drop_and_take_back() -> None:
            first = Peer(listener.accept()[0])
            first.handshake()
            if with_exit:
                first.exit()
            first.connection.close()
            second = Peer(listener.accept()[0])
            listener.close()
            second.handshake()
            second.ask(np.zeros((1, 3)), CELL)
            heard.append(second.hear_forces(1))
            second.exit()
            second.connection.close()

        thread = threading.Thread(target=drop_and_take_back)
        thread.start()
        make_server(UnixAddress(f"{folder}/s"), Evaluator({"default": Spring()}), [1]).run()
        thread.join(10)
    assert len(heard) == 1


def test_an_i_pi_that_says_exit_and_closes_while_we_evaluate_ended_in_order() -> None:
    """The forces cannot be handed over any more; why stands behind what we did not read."""
    has_left = threading.Event()

    class Slow(Spring):
        def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
            assert has_left.wait(10)
            return super().__call__(batch, want)

    def script(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].ask(np.zeros((1, 3)), CELL)
        time.sleep(0.2)  # until that is taken
        peers[0].exit()
        peers[0].connection.close()
        has_left.set()

    with scripted_ipi(script) as address:
        make_server(address, Evaluator({"default": Slow()}), [1]).run()


def test_a_simulation_that_is_given_up_does_not_make_the_server_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """One i-PI has died in a way that keeps its socket open; the other goes on."""
    monkeypatch.setattr("forceserver.endpoint.GREETING_SECONDS", 0.1)

    def go_on(peers: list[Peer]) -> None:
        peers[0].handshake()
        time.sleep(1.0)  # the time in which a spin would show
        peers[0].exit()

    with (
        scripted_ipi(lambda peers: peers[0].handshake(), keep_listening=True) as dead,
        scripted_ipi(go_on) as alive,
    ):
        server = make_server(dead, Evaluator({"default": Spring()}), [1], others=[alive])
        n_selects = count_selects(server, monkeypatch)
        with pytest.raises(PeerError, match="it hangs"):
            server.run()
    assert len(n_selects) < 1000  # dialling again costs a few; a spin makes 80,000 a second


def test_atoms_in_another_order_than_the_template_are_noticed_at_the_first_request() -> None:
    positions = np.random.default_rng(5).normal(size=(3, 3)) * 3.0
    numbers = [8, 1, 1]

    def script(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].ask(positions[[1, 0, 2]] * BOHR, CELL)  # hydrogen first
        assert peers[0].receive(1) == b""

    with scripted_ipi(script) as address:
        server = make_server(address, Evaluator({"default": Spring()}), numbers, positions=positions)
        with pytest.raises(UsageError, match="another order"):
            server.run()


def test_one_simulation_that_fails_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    """Two i-PIs on one server ask together; the structure of one makes the model return NaN."""

    class Touchy(Spring):
        def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
            evaluation = super().__call__(batch, want)
            evaluation.energies[evaluation.energies > 1e4] = torch.nan
            return evaluation

    def fail(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].ask(np.full((1, 3), 1e3), CELL)
        assert peers[0].receive(12) == b""

    def go_on(peers: list[Peer]) -> None:
        peers[0].handshake()
        for _ in range(3):
            peers[0].ask(np.ones((1, 3)), CELL)
            peers[0].hear_forces(1)
        peers[0].exit()

    evaluator = Evaluator({"default": Touchy()}, dump_directory=tmp_path)
    with scripted_ipi(fail) as bad, scripted_ipi(go_on) as good:
        server = make_server(bad, evaluator, [1], others=[good], linger_seconds=0.1)
        with pytest.raises(BadForces, match="not finite"):
            server.run()
    assert sum(server.statistics.n_requests.values()) == 3


def test_after_bad_forces_the_server_may_dial_again_but_not_for_ever(tmp_path: Path) -> None:
    def insist(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].ask(np.zeros((1, 3)), CELL)
        assert peers[0].receive(12) == b""

    evaluator = Evaluator({"default": Spring(spoil="energy")}, dump_directory=tmp_path)
    with scripted_ipi(insist) as address:
        server = make_server(address, evaluator, [1], on_bad_forces="reconnect")
        with pytest.raises(BadForces, match="not finite"):  # and no word of i-PI, which is not to blame
            server.run()


def test_connections_that_stand_when_no_more_can_be_had_are_closed_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoken = threading.Event()

    def script(peers: list[Peer]) -> None:
        for peer in peers:
            peer.send(fake_ipi.STATUS)
        spoken.set()
        for peer in peers:
            assert peer.receive(1) == b""  # no reset

    attempt, streams = Dialer.attempt, []

    def attempt_twice(dialer: Dialer) -> Stream | None:
        if len(streams) == 2:
            assert spoken.wait(20)
            raise UsageError("no socket can be had")
        if stream := attempt(dialer):
            streams.append(stream)
        return stream

    monkeypatch.setattr(Dialer, "attempt", attempt_twice)
    with scripted_ipi(script, n_connections=2) as address:
        server = make_server(address, Evaluator({"default": Spring()}), [1], n_connections=3)
        with pytest.raises(UsageError, match="no socket can be had"):
            server.run()


def test_an_unknown_parameter_in_init_is_refused_by_name() -> None:
    def script(peers: list[Peer]) -> None:
        peers[0].send(fake_ipi.STATUS)
        peers[0].receive(12)
        peers[0].send(fake_ipi.init(" force : direct "))
        assert peers[0].receive(1) == b""

    with scripted_ipi(script) as address:
        server = make_server(address, Evaluator({"default": Spring()}), [1])
        with pytest.raises(UsageError, match=r"'force'.*did you mean 'forces'"):
            server.run()


def test_nobody_listening_is_said_after_the_time_to_wait() -> None:
    server = make_server(
        UnixAddress("/tmp/fs-nobody"), Evaluator({"default": Spring()}), [1], wait_seconds=0.05
    )
    with pytest.raises(NobodyListening, match=r"nobody listens at /tmp/fs-nobody.*--wait"):
        server.run()
