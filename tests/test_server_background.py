"""Several simulations on a server that evaluates each by itself: nobody waits for another, and trouble stays where it is."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from forceserver.errors import BadForces
from forceserver.evaluate import Evaluator
from forceserver.parallel import ATOMS_OF_A_CALL
from forceserver.potentials.interface import Batch, Evaluation
from forceserver.server import Server
from forceserver.structures import ForceKind
from peer import Peer, make_server, scripted_ipi
from spring import BOHR, CELL, HARTREE, TwinSpring, torch_threads

Script = Callable[[list[Peer]], None]

FAR = 1e3  # bohr
N_ATOMS = ATOMS_OF_A_CALL


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    with torch_threads(4):
        yield


class Held(TwinSpring):
    """Far structures are held up until somebody lets them go on."""

    def __init__(self) -> None:
        super().__init__(seconds=0.0)
        self.has_begun, self.may_go_on = threading.Event(), threading.Event()

    def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
        if bool((batch.positions > 100).any()):
            self.has_begun.set()
            assert self.may_go_on.wait(20.0)
        return super().__call__(batch, want)


def asking(*places: float, n_atoms: int = N_ATOMS) -> Script:
    """Atoms that are all in one place, and in these one after the other."""

    def script(peers: list[Peer]) -> None:
        peers[0].handshake()
        for place in places:
            peers[0].ask(np.full((n_atoms, 3), place), CELL)
            _, forces, _ = peers[0].hear_forces(n_atoms)
            np.testing.assert_allclose(forces, -2.0 * place * HARTREE / BOHR**2, rtol=1e-12)
        peers[0].exit()

    return script


def serve_two(
    potential: TwinSpring, first: Script, second: Script, folder: Path = Path(), n_atoms: int = N_ATOMS
) -> Server:
    evaluator = Evaluator({"default": potential}, dump_directory=folder)
    with scripted_ipi(first) as one, scripted_ipi(second) as other:
        server = make_server(one, evaluator, [1] * n_atoms, others=[other], linger_seconds=5.0)
        server.run()
    return server


def test_a_simulation_is_answered_while_the_model_works_for_another() -> None:
    potential = Held()

    def short(peers: list[Peer]) -> None:
        assert potential.has_begun.wait(20.0)
        asking(1.0, 2.0, 3.0)(peers)
        potential.may_go_on.set()

    server = serve_two(potential, asking(FAR), short)
    assert sum(server.statistics.n_requests.values()) == server.statistics.n_gatherings == 4
    assert server.statistics.n_lingered == 0
    assert {n_threads for _, n_threads in potential.callers} == {2}
    assert not any("Main" in name for name, _ in potential.callers)


def test_bad_forces_for_one_leave_what_is_under_way_for_another_alone(tmp_path: Path) -> None:
    class Touchy(Held):
        def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
            evaluation = super().__call__(batch, want)
            evaluation.energies[batch.positions[0, 0] < 0] = torch.nan
            return evaluation

    potential = Touchy()

    def fail(peers: list[Peer]) -> None:
        assert potential.has_begun.wait(20.0)
        peers[0].handshake()
        peers[0].ask(np.full((N_ATOMS, 3), -1.0), CELL)
        assert peers[0].receive(12) == b""
        potential.may_go_on.set()

    with pytest.raises(BadForces, match="not finite"):
        serve_two(potential, asking(FAR, 1.0, FAR), fail, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_who_asks_to_stop_gets_it_when_all_that_is_under_way_is_answered() -> None:
    class Both(Held):
        """Begun is what is under way for both; a stop before that would find one of them in its handshake."""

        have_begun = threading.Barrier(2)

        def __call__(self, batch: Batch, want: frozenset[ForceKind]) -> Evaluation:
            self.have_begun.wait(20.0)
            return super().__call__(batch, want)

    potential = Both()
    servers: list[Server] = []

    def asked(peers: list[Peer]) -> None:
        peers[0].handshake()
        peers[0].ask(np.full((N_ATOMS, 3), FAR), CELL)
        if potential.has_begun.wait(20.0):
            servers[0]._stop.request("SIGTERM")
        potential.may_go_on.set()
        peers[0].hear_forces(N_ATOMS)
        assert peers[0].receive(1) == b""

    with scripted_ipi(asked) as one, scripted_ipi(asked) as other:
        servers.append(make_server(one, Evaluator({"default": potential}), [1] * N_ATOMS, others=[other]))
        servers[0].run()
    assert not potential.under_way


def test_what_does_not_fit_beside_another_is_evaluated_alone() -> None:
    potential = TwinSpring(fits_at_once=1, seconds=0.1)
    server = serve_two(potential, asking(1.0, 2.0), asking(3.0, 4.0))
    assert sum(server.statistics.n_requests.values()) == 4
    assert potential.most_under_way == 2


def test_a_model_that_cannot_be_copied_serves_all_together() -> None:
    class Single(TwinSpring):
        def twin(self) -> TwinSpring:
            raise RuntimeError("Cannot serialize custom bound C++ class")

    potential = Single(seconds=0.0)
    server = serve_two(potential, asking(1.0), asking(2.0))
    assert sum(server.statistics.n_requests.values()) == 2
    assert {(name, n_threads) for name, n_threads in potential.callers} == {("MainThread", 4)}


def test_small_structures_are_gathered_from_all_simulations() -> None:
    potential = TwinSpring(seconds=0.0)
    few = ATOMS_OF_A_CALL // 2
    serve_two(potential, asking(1.0, n_atoms=few), asking(2.0, n_atoms=few), n_atoms=few)
    assert not any(name.startswith("simulation") for name, _ in potential.callers)


def test_no_file_descriptor_is_left_behind() -> None:
    def n_descriptors() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    serve_two(TwinSpring(seconds=0.0), asking(1.0), asking(2.0))
    before = n_descriptors()
    for _ in range(3):
        serve_two(TwinSpring(seconds=0.0), asking(1.0), asking(2.0))
    assert n_descriptors() == before
