"""The server against a scripted i-PI on a real socket: units, gathering, and what never leaves."""

from __future__ import annotations

import gc
import socket
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fake_ipi
from forceserver.errors import (
    BadForces,
    ModelError,
    NobodyListening,
    OutOfMemory,
    PeerError,
    ProtocolError,
    UsageError,
)
from forceserver.evaluate import Evaluator
from forceserver.exchange import Template
from forceserver.inputfile import SocketSpec
from forceserver.potentials.interface import Batch, Capabilities, Evaluation, Forces
from forceserver.preflight import check_role
from forceserver.roles import parse_forces_option, parse_role
from forceserver.structures import ForceKind, ForceRole, Structure
from forceserver.transport import UnixAddress, parse_address
from peer import Peer, make_server, scripted_ipi

BOHR = 1.8897261  # per angstrom, i-PI's
HARTREE = 0.036749326  # per eV, i-PI's
CELL = np.diag([20.0, 21.0, 22.0])


class Spring:
    """E = |r|^2 eV/A^2 per atom, with what a test wants to go wrong. Its direct forces are the true ones plus a constant."""

    def __init__(self, *, spoil: str = "", fits: int = 10**9, direct_virial: bool = True) -> None:
        self.spoil, self.fits, self.calls = spoil, fits, []
        self.capabilities = Capabilities(
            "spring", None, None, torch.float64, torch.device("cpu"), True, True, direct_virial
        )

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        if batch.n_structures > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.spoil == "raise":
            raise RuntimeError("shape mismatch\nin layer 3")
        self.calls.append((batch.n_structures, want))
        squares = (batch.positions**2).sum(1)
        energies = torch.zeros(batch.n_structures, dtype=torch.float64).index_add(
            0, batch.atom_to_structure, squares
        )
        forces = -2.0 * batch.positions
        virials = torch.eye(3, dtype=torch.float64).repeat(batch.n_structures, 1, 1)
        if self.spoil == "energy":
            energies[0] = torch.nan
        if self.spoil == "forces":
            forces[-1, 0] = torch.inf
        if self.spoil == "virial":
            virials[0, 0, 0] = torch.nan
        if self.spoil == "shape":
            forces = forces[:-1]
        direct = Forces(forces + 1.0, virials if self.capabilities.direct_virial else None)
        return Evaluation(
            energies,
            Forces(forces, virials) if "conservative" in want else None,
            direct if "direct" in want else None,
        )


def structure(n_atoms: int = 2, seed: int = 0) -> Structure:
    positions = np.random.default_rng(seed).normal(size=(n_atoms, 3))
    return Structure(np.ones(n_atoms, dtype=np.int64), positions, np.eye(3) * 10, np.ones(3, dtype=bool))


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


def test_a_model_that_raises_ends_the_service_in_one_line_with_evidence(tmp_path: Path) -> None:
    evaluator = Evaluator({"default": Spring(spoil="raise")}, dump_directory=tmp_path)
    with pytest.raises(ModelError, match="RuntimeError: shape mismatch") as caught:
        evaluator.evaluate([(structure(), ForceRole())])
    assert "\n" not in str(caught.value)
    assert (tmp_path / "bad-structure-1.xyz").exists()


def test_evidence_is_never_overwritten(tmp_path: Path) -> None:
    evaluator = Evaluator({"default": Spring(spoil="energy")}, dump_directory=tmp_path)
    for _ in range(2):
        with pytest.raises(BadForces):
            evaluator.evaluate([(structure(), ForceRole())])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad-structure-1.xyz", "bad-structure-2.xyz"]


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
        n_selects = 0
        select = server._selector.select

        def count(timeout: float | None = None) -> object:
            nonlocal n_selects
            n_selects += 1
            return select(timeout)

        monkeypatch.setattr(server._selector, "select", count)
        with pytest.raises(PeerError, match="it hangs"):
            server.run()
    assert n_selects < 10_000  # looking a few times before sleeping is meant; a spin makes 80,000 a second


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


def test_a_model_without_a_direct_stress_is_refused_where_somebody_reads_the_virial() -> None:
    template = Template(np.array([1]), np.ones(3, dtype=bool))
    npt = SocketSpec("s", UnixAddress("/x"), {}, 1, 1, template, virial_readers=("the npt ensemble",))
    models = {"default": Spring(direct_virial=False)}
    with pytest.raises(UsageError, match=r"the npt ensemble reads it.*--virial conservative"):
        check_role(ForceRole(1.0), npt, models)
    check_role(ForceRole(1.0), npt, models, "conservative")
    check_role(ForceRole(0.0), npt, models)
    check_role(
        ForceRole(1.0), replace(npt, has_weight=False), models
    )  # the fast force of MTS counts for nothing
    check_role(ForceRole(1.0), replace(npt, virial_readers=()), models)


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
        with pytest.raises(PeerError, match="not finite"):
            server.run()


def test_a_structure_on_which_the_model_raises_is_found_in_its_batch(tmp_path: Path) -> None:
    class Raising(Spring):
        def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
            if bool((batch.positions > 50).any()):
                raise RuntimeError("no such thing")
            return super().__call__(batch, want)

    far = structure(seed=3)
    far = Structure(far.atomic_numbers, far.positions + 100.0, far.cell, far.pbc)
    work = [(structure(seed=1), ForceRole()), (far, ForceRole()), (structure(seed=2), ForceRole())]
    with pytest.raises(ModelError) as caught:
        Evaluator({"default": Raising()}, dump_directory=tmp_path).evaluate(work)
    assert caught.value.structure is far


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


def test_a_server_leaves_no_file_descriptor_behind() -> None:
    gc.collect()  # what other tests left to it
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with scripted_ipi(lambda peers: (peers[0].handshake(), peers[0].exit())) as address:
            server = make_server(address, Evaluator({"default": Spring()}), [1])
            server.run()
            server._stop.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_batch_that_does_not_fit_is_split_and_the_size_remembered() -> None:
    potential = Spring(fits=3)
    evaluator = Evaluator({"default": potential})
    work = [(structure(seed=seed), ForceRole()) for seed in range(8)]
    for _ in range(2):
        results = evaluator.evaluate(work)
        for result, (each, _) in zip(results, work, strict=True):
            np.testing.assert_allclose(result.forces, -2.0 * each.positions)
    assert [size for size, _ in potential.calls] == [2] * 8
    assert evaluator.statistics.n_splits == 2  # 8 and 4 did not fit; the second round did not try


def test_one_structure_that_does_not_fit_says_so() -> None:
    with pytest.raises(OutOfMemory, match="2 atoms does not fit"):
        Evaluator({"default": Spring(fits=0)}).evaluate([(structure(), ForceRole())])


def test_the_net_force_of_direct_forces_is_removed_or_kept_and_conservative_ones_are_left_alone() -> None:
    one = structure(5)
    true = -2.0 * one.positions
    removed = Evaluator({"default": Spring()})
    kept = Evaluator({"default": Spring()}, keep_net_force=True)
    direct = ForceRole(1.0)
    np.testing.assert_allclose(removed.evaluate([(one, direct)])[0].forces, true - true.mean(0))
    np.testing.assert_allclose(kept.evaluate([(one, direct)])[0].forces, true + 1.0)
    np.testing.assert_allclose(removed.evaluate([(one, ForceRole())])[0].forces, true)


def test_structures_that_want_the_same_share_a_call_and_results_keep_their_order() -> None:
    potential = Spring()
    work = [
        (structure(seed=seed), ForceRole(fraction)) for seed, fraction in enumerate([1.0, 0.0, 0.5, 1.0, 0.0])
    ]
    results = Evaluator({"default": potential}, keep_net_force=True).evaluate(work)
    assert sorted(size for size, _ in potential.calls) == [1, 2, 2]
    for result, (each, role) in zip(results, work, strict=True):
        np.testing.assert_allclose(result.forces, -2.0 * each.positions + role.direct_fraction)


@pytest.mark.parametrize(
    ("virial", "fraction", "has_virial"),
    [
        ("own", 1.0, False),
        ("conservative", 1.0, True),
        ("own", 0.5, False),
        ("conservative", 0.5, True),
        ("none", 0.0, True),
    ],
)
def test_a_virial_that_the_model_lacks_is_missing_unless_the_conservative_one_is_asked_for(
    virial: str, fraction: float, has_virial: bool
) -> None:
    evaluator = Evaluator({"default": Spring(direct_virial=False)}, virial=virial)  # type: ignore[arg-type]
    (result,) = evaluator.evaluate([(structure(), ForceRole(fraction))])
    assert (result.virial is not None) == has_virial


@pytest.mark.parametrize(
    ("parameters", "role"),
    [
        ({}, ForceRole(0.5)),
        ({"forces": "direct"}, ForceRole(1.0)),
        ({"forces": "conservative"}, ForceRole(0.0)),
        ({"forces": "blended", "direct_fraction": "0.25"}, ForceRole(0.25)),
        ({"model": "fast"}, ForceRole(0.5, "fast")),
    ],
)
def test_parameters_say_the_role_and_the_default_fills_in(
    parameters: dict[str, str], role: ForceRole
) -> None:
    assert parse_role(parameters, ForceRole(0.5), frozenset({"default", "fast"})) == role


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"forces": "dirct"}, "did you mean 'direct'"),
        ({"forces": "blended"}, "needs 'direct_fraction: X'"),
        ({"forces": "direct", "direct_fraction": "0.3"}, "'forces: blended' only"),
        ({"direct_fraction": "0.3"}, "without 'forces: blended'"),
        ({"forces": "blended", "direct_fraction": "1.5"}, "between 0 and 1"),
        ({"model": "slow"}, "--also slow=MODEL"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(parameters: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_role(parameters, ForceRole(), frozenset({"default"}))


def test_the_forces_option_has_three_forms() -> None:
    assert parse_forces_option("direct") == ForceRole(1.0)
    assert parse_forces_option("blended:0.3") == ForceRole(0.3)
    for bad in ("blended", "blended:x", "both", "direct:0.3"):
        with pytest.raises(UsageError):
            parse_forces_option(bad)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("water", "/tmp/ipi_water"),
        ("/run/me/s", "/run/me/s"),
        ("node3:31415", "node3:31415"),
        (":31415", "localhost:31415"),
    ],
)
def test_addresses_are_names_paths_or_hosts(text: str, address: str) -> None:
    assert str(parse_address(text, "/tmp/ipi_")) == address
    for bad in ("host:port", "host:0", "host:70000", "host:"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            parse_address(bad, "")
