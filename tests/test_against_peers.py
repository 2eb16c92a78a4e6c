"""The whole server against the programs that users know: i-PI's own metatomic driver, and ASE as the other end of the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.socketio import SocketIOCalculator

from forceserver.potentials import load_potential
from forceserver.potentials.interface import Batch
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind, Structure
from real_ipi import BIN, WATER64, Socket, Workplace, free_port, workplace
from systems import to_ase, water_box


@pytest.fixture
def place() -> Iterator[Workplace]:
    with workplace() as place:
        yield place


def small_water(place: Workplace, n_molecules: int = 8) -> Path:
    """A box of water as an i-PI xyz."""
    atoms = to_ase(water_box(n_molecules))
    lengths = " ".join(f"{length:.8f}" for length in atoms.cell.lengths())
    lines = [
        str(len(atoms)),
        f"# CELL(abcABC): {lengths} 90.0 90.0 90.0 positions{{angstrom}} cell{{angstrom}}",
    ]
    lines += [f"{atom.symbol} {atom.x:.8f} {atom.y:.8f} {atom.z:.8f}" for atom in atoms]
    path = place.path / "small.xyz"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", [CONSERVATIVE, DIRECT])
def test_trajectories_agree_with_i_pi_s_own_metatomic_driver(
    place: Workplace, metatrain_model: Callable[[str, str], Path], kind: ForceKind
) -> None:
    """20 steps of a randomly initialised PET in float64, served by us and by `i-pi-py_driver -m metatomic`."""
    model = metatrain_model("pet", "float64")
    structure = small_water(place)
    place.write_input(Socket(parameters=f"{{forces: {kind}}}"), structure=structure, steps=20)
    place.run(str(model))
    ours = (
        place.trajectory("simulation.pos_0.xyz"),
        place.trajectory("simulation.for_0.xyz"),
        place.properties(),
    )

    place.write_input(Socket(), structure=structure, steps=20)  # the peer cannot read <parameters>
    ipi = place.start_ipi()
    place.wait_until(lambda: "polling thread" in place.read("ipi.log"), "ipi.log")
    options = f"template={structure},model={model},non_conservative={kind == DIRECT}"
    command = (
        str(BIN / "i-pi-py_driver"),
        "-u",
        "-S",
        f"{place.path}/s_",
        "-a",
        "forces",
        "-m",
        "metatomic",
        "-o",
        options,
    )
    place.start(*command, log="peer.log")
    assert ipi.wait(120) == 0, place.read("peer.log")
    np.testing.assert_allclose(
        ours[0], place.trajectory("simulation.pos_0.xyz"), atol=1e-4
    )  # xyz has six digits
    np.testing.assert_allclose(ours[1], place.trajectory("simulation.for_0.xyz"), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours[2], place.properties(), rtol=1e-6, atol=1e-9)


def test_ase_s_socket_calculator_gets_what_a_direct_call_gives(place: Workplace) -> None:
    """ASE in the place of i-PI: energies, forces and stress of ten deformed structures."""
    potential = load_potential("qtip4pf")
    port = free_port()
    small = water_box(8)
    template = small_water(place)
    generator = np.random.default_rng(0)
    with SocketIOCalculator(port=port) as calculator:
        place.start_server("qtip4pf", "-a", f"localhost:{port}", "-t", str(template))
        for _ in range(10):
            strain = np.eye(3) + 0.02 * generator.normal(size=(3, 3))
            positions = small.positions @ strain + 0.05 * generator.normal(size=small.positions.shape)
            cell = small.cell @ strain
            atoms = Atoms(small.atomic_numbers, positions, cell=cell, pbc=True, calculator=calculator)
            structure = Structure(small.atomic_numbers, positions, cell, small.pbc)
            capabilities = potential.capabilities
            batch = Batch.from_structures([structure], dtype=capabilities.dtype, device=capabilities.device)
            wanted = potential(batch, frozenset({CONSERVATIVE}))
            assert wanted.conservative is not None
            assert wanted.conservative.virials is not None
            stress = -wanted.conservative.virials[0].numpy() / atoms.get_volume()
            # ASE's bohr and hartree are not those of i-PI, which the wire carries: 1e-7 in every length.
            assert atoms.get_potential_energy() == pytest.approx(float(wanted.energies[0]), rel=1e-6)
            np.testing.assert_allclose(
                atoms.get_forces(), wanted.conservative.forces.numpy(), rtol=1e-6, atol=1e-6
            )
            np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, rtol=1e-6, atol=1e-7)


def test_the_water_of_the_library_is_what_i_pi_reads() -> None:
    """Our reading of i-PI's xyz, through ASE, against i-PI's own."""
    from ipi.engine.initializer import init_file

    from systems import water64

    (atoms,), cell = init_file("xyz", str(WATER64))
    np.testing.assert_allclose(atoms.q.reshape(-1, 3) / 1.8897261, water64().positions, atol=1e-7)
    np.testing.assert_allclose(cell.h.T / 1.8897261, water64().cell, atol=1e-7)
