"""q-TIP4P/F by a second route: NumPy, one loop per sum, no code and no constant shared with the potential.

Units: eV, angstrom, elementary charges.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from ase import units
from scipy.special import erfc

from forceserver.structures import FloatArray, Structure

KCAL_PER_MOL = units.kcal / units.mol
COULOMB = units.Hartree * units.Bohr


def loop_energy(water: Structure) -> float:
    molecules = water.positions.reshape(-1, 3, 3)
    bonded = sum(loop_bonded_energy(molecule) for molecule in molecules)
    images = [np.array(n) @ water.cell for n in product(range(-3, 4), repeat=3)]
    gamma = 0.73612
    sites = molecules.copy()
    sites[:, 0] = gamma * molecules[:, 0] + (1 - gamma) * (molecules[:, 1] + molecules[:, 2]) / 2
    charges = np.tile([-1.1128, 0.5564, 0.5564], len(molecules))
    energy = bonded + loop_lennard_jones(molecules[:, 0], images)
    energy += loop_ewald(sites.reshape(-1, 3), charges, water.cell, images)
    for molecule in sites:
        for (a, q_a), (b, q_b) in [
            ((0, -1.1128), (1, 0.5564)),
            ((0, -1.1128), (2, 0.5564)),
            ((1, 0.5564), (2, 0.5564)),
        ]:
            energy -= COULOMB * q_a * q_b / np.linalg.norm(molecule[a] - molecule[b])
    return float(energy)


def loop_bonded_energy(molecule: FloatArray) -> float:
    first, second = molecule[1] - molecule[0], molecule[2] - molecule[0]
    energy = 0.0
    for bond in (first, second):
        x = 2.287 * (np.linalg.norm(bond) - 0.9419)
        energy += 116.09 * KCAL_PER_MOL * (x**2 - x**3 + 7 / 12 * x**4)
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    return energy + 0.5 * 87.85 * KCAL_PER_MOL * (np.arccos(cosine) - np.radians(107.4)) ** 2


def loop_lennard_jones(oxygens: FloatArray, images: list[FloatArray]) -> float:
    energy = 0.0
    for i, j in product(range(len(oxygens)), repeat=2):
        for image in images:
            r = np.linalg.norm(oxygens[j] + image - oxygens[i])
            if 0 < r < 9:
                x = max(r - 8, 0)
                fade = 1 - 10 * x**3 + 15 * x**4 - 6 * x**5
                energy += 0.5 * 4 * 0.1852 * KCAL_PER_MOL * ((3.1589 / r) ** 12 - (3.1589 / r) ** 6) * fade
    return energy


def loop_ewald(
    sites: FloatArray,
    charges: FloatArray,
    cell: FloatArray,
    images: list[FloatArray],
    screening: float = 0.45,
) -> float:
    energy = -screening / np.sqrt(np.pi) * np.sum(charges**2)
    for image in images:
        distances = np.linalg.norm(sites[None] + image - sites[:, None], axis=2)
        near = distances > 0
        energy += 0.5 * np.sum(
            np.outer(charges, charges)[near] * erfc(screening * distances[near]) / distances[near]
        )
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    for integers in product(range(-9, 10), repeat=3):
        k = integers @ reciprocal
        if any(integers):
            intensity = np.sum(charges * np.cos(sites @ k)) ** 2 + np.sum(charges * np.sin(sites @ k)) ** 2
            energy += (
                2 * np.pi / np.linalg.det(cell) * np.exp(-k @ k / (4 * screening**2)) / (k @ k) * intensity
            )
    return COULOMB * energy
