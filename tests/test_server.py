"""The server against a scripted i-PI on a real socket: units, gathering, answering."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import numpy as np
import pytest

import fake_ipi
from forceserver.evaluate import Evaluator
from forceserver.potentials.interface import Batch, Evaluation
from forceserver.protocol import HABIT
from forceserver.structures import ForceKind
from peer import Peer, count_selects, make_server, scripted_ipi
from spring import BOHR, CELL, HARTREE, Spring


def test_units_and_conventions_at_the_border_are_i_pi_s() -> None:
    positions = np.random.default_rng(1).normal(size=(2, 3))
    heard = []

    def script(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].ask(positions, CELL)
        heard.append(peers[0].hear_forces(2))
        peers[0].exit()

    with scripted_ipi(script) as address:
        make_server(address, Evaluator({"default": Spring()}), [1, 1]).run()
    energy, forces, virial = heard[0]
    angstrom = positions / BOHR
    assert energy == pytest.approx((angstrom**2).sum() * HARTREE, rel=1e-14)
    np.testing.assert_allclose(forces, -2.0 * angstrom * HARTREE / BOHR, rtol=1e-14)
    np.testing.assert_allclose(virial, np.eye(3) * HARTREE, rtol=1e-14)


@pytest.mark.parametrize("role", ["direct", "conservative"])
def test_zeros_for_a_virial_are_told_where_no_input_says_who_reads_it(
    role: str, caplog: pytest.LogCaptureFixture
) -> None:
    def script(peers: list[Peer]) -> None:
        for peer in peers:
            peer.handshake(f"forces : {role}")
        for peer in peers:
            peer.ask(np.ones((2, 3)), CELL)
            _, _, virial = peer.hear_forces(2)
            assert (virial == 0.0).all() == (role == "direct")
            peer.exit()

    with scripted_ipi(script, 2) as address, caplog.at_level("WARNING", logger="forceserver"):
        evaluator = Evaluator({"default": Spring(direct_virial=False)})
        make_server(address, evaluator, [1, 8], n_connections=2).run()
    said = [own for own in caplog.messages if "come without a virial; zeros are sent" in own]
    assert len(said) == (role == "direct")


def test_cells_turn_from_columns_into_rows() -> None:
    seen = []

    class Looking(Spring):
        def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
            seen.append(batch.cells[0].numpy().copy())
            return super().__call__(batch, want)

    columns = np.array([[10.0, 1.0, 2.0], [0.0, 11.0, 3.0], [0.0, 0.0, 12.0]])

    def script(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].ask(np.zeros((1, 3)), columns)
        peers[0].hear_forces(1)
        peers[0].exit()

    with scripted_ipi(script) as address:
        make_server(address, Evaluator({"default": Looking()}), [1]).run()
    np.testing.assert_allclose(seen[0], columns.T / BOHR, rtol=1e-14)


def test_connections_that_ask_together_are_answered_by_one_call_each_with_its_own() -> None:
    positions = np.random.default_rng(2).normal(size=(4, 2, 3))
    potential = Spring()

    def script(peers: list[Peer]) -> None:
        for peer in peers:
            peer.handshake()
        for _ in range(3):
            for peer, own in zip(peers, positions, strict=True):
                peer.ask(own, CELL)
            for peer, own in reversed(list(zip(peers, positions, strict=True))):
                _, forces, _ = peer.hear_forces(2)
                np.testing.assert_allclose(forces, -2.0 * own * HARTREE / BOHR**2, rtol=1e-12)
        for peer in peers:
            peer.exit()

    with scripted_ipi(script, n_connections=4) as address:
        make_server(
            address, Evaluator({"default": potential}), [1, 1], n_connections=4, linger_seconds=5.0
        ).run()
    assert [size for size, _ in potential.calls] == [4, 4, 4]


def test_an_incomplete_gathering_is_evaluated_after_the_linger() -> None:
    potential = Spring()

    def script(peers: list[Peer]) -> None:
        for peer in peers:
            peer.handshake()
        peers[0].ask(np.zeros((2, 3)), CELL)
        peers[0].hear_forces(2)
        for peer in peers:
            peer.exit()

    with scripted_ipi(script, n_connections=2) as address:
        server = make_server(
            address, Evaluator({"default": potential}), [1, 1], n_connections=2, linger_seconds=0.05
        )
        server.run()
    assert server.statistics.n_lingered == 1


def test_padding_of_a_batch_is_evaluated_once_and_answered_in_full() -> None:
    potential = Spring()
    positions = np.random.default_rng(3).normal(size=(4, 2, 3))
    positions[2:] = positions[1]

    def script(peers: list[Peer]) -> None:
        peers[0].handshake("batch_size:4")
        peers[0].send(fake_ipi.posdata_batch(positions, np.stack([CELL] * 4)) + fake_ipi.GETFORCE)
        assert peers[0].receive(12) == fake_ipi.FORCEREADY
        energies = np.frombuffer(peers[0].receive(32))
        np.testing.assert_allclose(energies, (positions**2).sum((1, 2)) * HARTREE / BOHR**2)
        peers[0].receive(4 + 4 * (48 + 72 + 4))
        peers[0].exit()

    with scripted_ipi(script) as address:
        make_server(address, Evaluator({"default": potential}), [1, 1]).run()
    assert [size for size, _ in potential.calls] == [2]


def test_an_i_pi_that_always_probes_after_forces_finds_the_answer_before_it_asks() -> None:
    def script(peers: list[Peer]) -> None:
        peers[0].handshake()
        for step in range(2 * HABIT):
            peers[0].ask(np.zeros((2, 3)), CELL)
            peers[0].hear_forces(2)
            if step >= HABIT:
                assert peers[0].receive(12) == fake_ipi.READY
                peers[0].send(fake_ipi.STATUS)
            else:
                peers[0].send(fake_ipi.STATUS)
                assert peers[0].receive(12) == fake_ipi.READY
        peers[0].send(fake_ipi.STATUS)  # out of the habit: a question as ever
        assert peers[0].receive(12) == fake_ipi.READY
        peers[0].exit()

    with scripted_ipi(script) as address:
        make_server(address, Evaluator({"default": Spring()}), [1, 1]).run()


def test_a_probe_while_an_answer_is_owed_waits_and_does_not_make_the_server_spin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def script(peers: list[Peer]) -> None:
        for peer in peers:
            peer.handshake()
        peers[0].send(fake_ipi.posdata(np.zeros((2, 3)), CELL))
        time.sleep(0.1)  # until that is taken
        peers[0].send(fake_ipi.STATUS)
        time.sleep(0.5)  # the time in which a spin would show
        peers[1].ask(np.zeros((2, 3)), CELL)
        assert peers[0].receive(12) == fake_ipi.HAVEDATA
        peers[0].send(fake_ipi.GETFORCE)
        for peer in peers:
            peer.hear_forces(2)
            peer.exit()

    with scripted_ipi(script, n_connections=2) as address:
        server = make_server(
            address, Evaluator({"default": Spring()}), [1, 1], n_connections=2, linger_seconds=5.0
        )
        n_selects = count_selects(server, monkeypatch)
        server.run()
    assert len(n_selects) < 100


def test_an_exit_in_the_wake_of_an_answer_does_not_disturb_the_other_connections() -> None:
    """i-PI was told to end while we evaluated: EXIT stands behind the requests on both connections."""
    potential = Spring()

    def script(peers: list[Peer]) -> None:
        for peer in peers:
            peer.handshake()
        for peer in peers:
            peer.send(fake_ipi.posdata(np.zeros((1, 3)), CELL) + fake_ipi.GETFORCE + fake_ipi.EXIT)
        for peer in peers:
            peer.hear_forces(1)

    with scripted_ipi(script, n_connections=2) as address:
        make_server(
            address, Evaluator({"default": potential}), [1], n_connections=2, linger_seconds=1.0
        ).run()


def test_a_server_leaves_no_file_descriptor_behind() -> None:
    gc.collect()  # what other tests left to it
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with scripted_ipi(lambda peers: (peers[0].handshake(), peers[0].exit())) as address:
            server = make_server(address, Evaluator({"default": Spring()}), [1])
            server.run()
            server._stop.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
