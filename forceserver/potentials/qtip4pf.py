"""q-TIP4P/F: flexible water for path integrals, in closed form, with Ewald sums and exact forces and virials.

Units: eV, angstrom, elementary charges. Habershon, Markland and Manolopoulos, J. Chem. Phys. 131, 024501 (2009):

    O-H       D [(a x)^2 - (a x)^3 + 7/12 (a x)^4],  x = r - r_eq          (a Morse well to fourth order)
    H-O-H     k/2 (theta - theta_eq)^2
    O...O     Lennard-Jones
    charges   on the hydrogens and on a site M = gamma O + (1 - gamma) (H1 + H2) / 2

Atoms come as O H H, molecule after molecule. They may be wrapped into the cell atom by atom: bonds take the nearest
image. A structure is periodic in all three directions (Ewald sums, tin foil) or in none (bare Coulomb); the cell may have
any shape, and be smaller than the cutoffs.

Choices of this implementation, where the paper leaves one:
- Lennard-Jones is switched off smoothly over the last angstrom before 9 A, so that energy, force and force gradient
  are continuous and NVE runs conserve energy. There is no correction for the tail beyond.
- `accuracy` (eV/A, 1e-6 unless given) is the error of the Ewald forces, which sets both of its cutoffs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forceserver.errors import ModelError
from forceserver.potentials.autograd import EnergyPotential
from forceserver.potentials.ewald import Ewald, bare_energies, cluster_energies
from forceserver.potentials.interface import Batch, Capabilities, Potential
from forceserver.potentials.lennard_jones import pair_energies
from forceserver.potentials.pairs import Pairs, find_pairs, minimum_image, switch
from forceserver.potentials.specification import read_numbers, require_positive
from forceserver.potentials.synthetic import split_direct, with_direct

KCAL_PER_MOL = 4184.0 / (6.02214076e23 * 1.602176634e-19)  # eV
WELL_DEPTH = 116.09 * KCAL_PER_MOL  # eV
WELL_STEEPNESS = 2.287  # 1/A
BOND_LENGTH = 0.9419  # A
ANGLE_STIFFNESS = 87.85 * KCAL_PER_MOL  # eV/rad^2
ANGLE = math.radians(107.4)
EPSILON = 0.1852 * KCAL_PER_MOL  # eV
SIGMA = 3.1589  # A
CHARGE_M = -1.1128  # e
CHARGE_H = 0.5564  # e
GAMMA = 0.73612

LENNARD_JONES_CUTOFF = 9.0  # A
SWITCH_WIDTH = 1.0  # A
REAL_CUTOFF = 6.0  # A, where real and reciprocal space cost about the same for a hundred molecules
# The root mean square error of a force is this times exp(-(a r_cut)^2) in liquid water at that real cutoff
# (Kolafa and Perram, Mol. Simul. 9, 351 (1992)): it turns an accuracy into a truncation.
TRUNCATED_FORCE = 2.0  # eV/A
LONGEST_BOND = 2.5  # A, beyond which atoms are not a molecule but a mistake in their order

DEFAULTS = {"accuracy": 1e-6}  # eV/A
ELEMENTS = frozenset({1, 8})
_BONDS = ((0, 1), (0, 2), (1, 2))  # pairs within a molecule


@dataclass(frozen=True)
class WaterModel:
    """The energy of q-TIP4P/F and how accurately to sum it."""

    ewald: Ewald

    def energies(self, batch: Batch) -> Tensor:
        """Energies (n_structures,) in eV.

        Raises:
            ModelError: the atoms are not whole molecules in the order O H H, or the structure is periodic in part.
        """
        periodic = _is_periodic(batch)
        _check_species(batch)
        batch, bonds = _make_whole(batch, periodic)
        _check_bonds(batch, bonds)
        molecule_to_structure = batch.atom_to_structure[::3]
        bonded = bond_energies(bonds).sum(1) + angle_energies(bonds)
        total = bonded.new_zeros(batch.n_structures).index_add(0, molecule_to_structure, bonded)
        return total + oxygen_energies(batch) + self._coulomb_energies(batch, periodic)

    def _coulomb_energies(self, batch: Batch, periodic: bool) -> Tensor:
        """Charges of different molecules (n_structures,), eV: those of the same molecule do not see each other."""
        sites = replace(batch, positions=charge_sites(batch.positions))
        charges = batch.positions.new_tensor([CHARGE_M, CHARGE_H, CHARGE_H]).repeat(len(batch.positions) // 3)
        total = self.ewald.energies(sites, charges) if periodic else cluster_energies(sites, charges)
        return total - bare_energies(sites, charges, _pairs_within_molecules(batch))


def bond_energies(bonds: Tensor) -> Tensor:
    """Energies of bonds (..., 3) from O to H, in eV."""
    x: Tensor = WELL_STEEPNESS * (torch.linalg.vector_norm(bonds, dim=-1) - BOND_LENGTH)
    return WELL_DEPTH * x**2 * (1.0 - x + 7.0 / 12.0 * x**2)


def angle_energies(bonds: Tensor) -> Tensor:
    """Energies of the angles between two bonds (n_molecules, 2, 3), in eV."""
    first, second = bonds.unbind(1)
    # atan2 keeps the derivative finite for a straight molecule, where that of acos diverges.
    sine = torch.linalg.vector_norm(torch.linalg.cross(first, second), dim=1)
    theta = torch.atan2(sine, (first * second).sum(1))
    return 0.5 * ANGLE_STIFFNESS * (theta - ANGLE) ** 2


def oxygen_energies(batch: Batch) -> Tensor:
    """Lennard-Jones energies between the oxygens (n_structures,), in eV."""
    oxygens = replace(
        batch,
        positions=batch.positions[::3],
        atomic_numbers=batch.atomic_numbers[::3],
        atom_to_structure=batch.atom_to_structure[::3],
        n_atoms=tuple(n // 3 for n in batch.n_atoms),
    )
    pairs = find_pairs(oxygens, LENNARD_JONES_CUTOFF)
    squared_distances = (pairs.vectors(oxygens) ** 2).sum(1)
    fade = switch(squared_distances.sqrt(), LENNARD_JONES_CUTOFF - SWITCH_WIDTH, LENNARD_JONES_CUTOFF)
    return pairs.sum_per_structure(
        pair_energies(squared_distances, EPSILON, SIGMA) * fade, batch.n_structures
    )


def charge_sites(positions: Tensor) -> Tensor:
    """Replace the oxygens of whole molecules (n_atoms, 3) by their M sites."""
    oxygen, hydrogens = positions.unflatten(0, (-1, 3)).tensor_split([1], dim=1)
    site = GAMMA * oxygen + (1.0 - GAMMA) * hydrogens.mean(1, keepdim=True)
    return torch.cat([site, hydrogens], dim=1).flatten(0, 1)


def load(options: Mapping[str, str], *, device: torch.device, dtype: torch.dtype | None) -> Potential:
    """Options `accuracy` (eV/A, of the Ewald forces) and `direct` (`synthetic`)."""
    options, direct = split_direct("qtip4pf", options, DEFAULTS)
    numbers = read_numbers("qtip4pf", options, DEFAULTS)
    require_positive("qtip4pf", numbers, DEFAULTS)
    truncation = min(numbers["accuracy"] / TRUNCATED_FORCE, 1e-2)
    model = WaterModel(Ewald(real_cutoff=REAL_CUTOFF, truncation=truncation))
    capabilities = Capabilities(
        name="q-TIP4P/F water",
        elements=ELEMENTS,
        cutoff=None,
        dtype=dtype or torch.float64,
        device=device,
        conservative=True,
        direct=False,
        direct_virial=False,
    )
    return with_direct(EnergyPotential(capabilities, model.energies), direct)


def _make_whole(batch: Batch, periodic: bool) -> tuple[Batch, Tensor]:
    """Put the hydrogens beside their oxygen; also give the bonds (n_molecules, 2, 3) from O to H."""
    molecules = batch.positions.unflatten(0, (-1, 3))
    oxygens = molecules[:, :1]
    bonds = molecules[:, 1:] - oxygens
    if periodic:
        cells = batch.cells[batch.atom_to_structure[::3].repeat_interleave(2)]
        bonds = minimum_image(bonds.flatten(0, 1), cells).unflatten(0, (-1, 2))
    positions = torch.cat([oxygens, oxygens + bonds], dim=1).flatten(0, 1)
    return replace(batch, positions=positions), bonds


def _pairs_within_molecules(batch: Batch) -> Pairs:
    """The three pairs of each molecule, for whole molecules."""
    starts = torch.arange(0, len(batch.positions), 3, device=batch.positions.device)
    first, second = torch.tensor(_BONDS, device=starts.device).T
    pair_to_structure = batch.atom_to_structure[::3].repeat_interleave(3)
    no_shift = batch.positions.new_zeros(len(pair_to_structure), 3)
    return Pairs(
        (starts[:, None] + first).flatten(), (starts[:, None] + second).flatten(), no_shift, pair_to_structure
    )


def _is_periodic(batch: Batch) -> bool:
    """Whether the structures are periodic, all in the same way."""
    periodic = bool(batch.pbc.all())
    if not periodic and bool(batch.pbc.any()):
        raise ModelError(
            "q-TIP4P/F wants every structure of a batch periodic in all three directions, or none in any; got "
            f"{batch.pbc.tolist()}. Remedy: give the structures the same periodicity, e.g. a cell with vacuum"
        )
    if periodic and not bool((torch.linalg.det(batch.cells.detach()).abs() > 1e-6).all()):
        raise ModelError(
            f"q-TIP4P/F wants periodic cells with a volume, got {batch.cells.tolist()}. Remedy: give the lattice "
            "vectors in the structure, or set pbc to false"
        )
    return periodic


def _check_species(batch: Batch) -> None:
    for structure, n_atoms in enumerate(batch.n_atoms):
        if n_atoms % 3:
            raise ModelError(
                f"q-TIP4P/F wants whole molecules, three atoms each; structure {structure} of the batch has {n_atoms} "
                "atoms. Remedy: serve another model, or remove what is not water"
            )
    molecules = batch.atomic_numbers.unflatten(0, (-1, 3))
    wrong = (molecules != molecules.new_tensor([8, 1, 1])).any(1)
    if bool(wrong.any()):
        molecule = int(wrong.nonzero()[0])
        raise ModelError(
            f"q-TIP4P/F wants atoms in the order O H H (8 1 1), molecule after molecule; {_name(batch, molecule)} has "
            f"the atomic numbers {molecules[molecule].tolist()}. Remedy: reorder the atoms of the structure"
        )


def _check_bonds(batch: Batch, bonds: Tensor) -> None:
    lengths = torch.linalg.vector_norm(bonds.detach(), dim=-1).amax(1)
    # Written so that a length that is not a number fails too.
    wrong = ~(lengths < LONGEST_BOND)
    if bool(wrong.any()):
        molecule = int(wrong.nonzero()[0])
        raise ModelError(
            f"q-TIP4P/F wants O-H bonds shorter than {LONGEST_BOND:g} A; {_name(batch, molecule)} has one of "
            f"{float(lengths[molecule]):.3g} A. Remedy: order the atoms O H H, molecule after molecule, or, if they "
            "are, look for a timestep that is too long or an overlap in the structure"
        )


def _name(batch: Batch, molecule: int) -> str:
    """`molecule 3 of structure 1 (atoms 6 to 8)`: molecules count from 1, atoms and structures from 0."""
    structure = int(batch.atom_to_structure[3 * molecule])
    atom = 3 * molecule - sum(batch.n_atoms[:structure])
    return f"molecule {atom // 3 + 1} of structure {structure} of the batch (atoms {atom} to {atom + 2})"
