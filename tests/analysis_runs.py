"""Runs with known truth for the tests of `analysis`, in files as i-PI writes them.

Water without forces: every velocity is an Ornstein-Uhlenbeck process, which is what Langevin dynamics of free particles
is, so that temperatures, their fluctuations, spectra and diffusion are known in closed form. Units: eV, A, ps, amu, K.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ipi.engine.atoms import Atoms as IpiAtoms
from ipi.engine.cell import Cell as IpiCell
from ipi.utils.io import print_file
from ipi.utils.units import unit_to_internal
from scipy.signal import lfilter

K_B = 8.617343e-5  # eV/K
KINETIC = 1.0364269e-4  # eV per amu (A/ps)^2
MASSES = {"O": 15.9994, "H": 1.00794, "Cl": 35.4527}

INPUT = """<simulation verbosity="low">
  <output prefix="simulation">
    <properties filename="out" stride="{stride}"> [ step, time{{picosecond}}, conserved{{electronvolt}} ] </properties>
    <trajectory filename="pos" stride="{stride}"> positions{{angstrom}} </trajectory>
    <trajectory filename="fd" stride="{stride}"> forces_component_raw(0){{ev/ang}} </trajectory>
    <trajectory filename="fc" stride="{stride}"> forces_component_raw(1){{ev/ang}} </trajectory>
  </output>
  <total_steps> 1000 </total_steps>
  <ffsocket name="first" mode="unix"> <address> a </address> <parameters>{{forces: {role}}}</parameters> </ffsocket>
  <ffsocket name="second" mode="unix"> <address> b </address> <parameters>{{forces: conservative}}</parameters> </ffsocket>
  <system>
    <initialize nbeads="{n_beads}"> <file mode="xyz"> start.xyz </file> </initialize>
    <forces> {forces} </forces>
    <ensemble> <temperature units="kelvin"> {temperature_K} </temperature> {pressure} </ensemble>
    <motion mode="dynamics">
      <fixcom> {fixcom} </fixcom> <fixatoms> {fixed} </fixatoms>
      <dynamics mode="{ensemble}">
        <timestep units="femtosecond"> {timestep_fs} </timestep>
        {thermostat} {nmts}
      </dynamics>
    </motion>
  </system>
</simulation>
"""
SINGLE = '<force forcefield="first"/> <force forcefield="second" weight="0"/>'
MTS = (
    '<force forcefield="second"> <mts_weights> [ 1, 0 ] </mts_weights> </force>'
    '<force forcefield="first"> <mts_weights> [ -1, 1 ] </mts_weights> </force>'
)


@dataclass(frozen=True)
class Setting:
    """What the input of a synthetic run says."""

    ensemble: str = "nvt"
    thermostat: str = "langevin"
    tau_fs: float = 100.0
    temperature_K: float = 300.0
    timestep_fs: float = 0.5
    stride: int = 8
    n_beads: int = 1
    fixcom: bool = True
    fixed: tuple[int, ...] = ()  # atoms
    gle: str = ""  # <A> and <C> of the thermostat
    role: str = "conservative"
    mts: int = 0  # M; 0: single time steps
    n_waters: int = 64
    n_ions: int = 0  # Cl, after the waters

    @property
    def interval_ps(self) -> float:
        return self.stride * self.timestep_fs * 1e-3

    @property
    def labels(self) -> list[str]:
        return ["O", "H", "H"] * self.n_waters + ["Cl"] * self.n_ions

    @property
    def masses(self) -> np.ndarray:
        return np.array([MASSES[label] for label in self.labels])

    @property
    def box(self) -> float:
        return 12.42 * (self.n_waters / 64) ** (1 / 3)

    def text(self) -> str:
        thermostat = (
            f'<thermostat mode="{self.thermostat}"> <tau units="femtosecond"> {self.tau_fs} </tau> {self.gle} </thermostat>'
            if self.ensemble != "nve"
            else ""
        )
        return INPUT.format(
            stride=self.stride,
            role=self.role,
            n_beads=self.n_beads,
            forces=MTS if self.mts else SINGLE,
            temperature_K=self.temperature_K,
            pressure='<pressure units="bar"> 1 </pressure>' if self.ensemble == "npt" else "",
            fixcom=self.fixcom,
            fixed=list(self.fixed),
            ensemble=self.ensemble,
            timestep_fs=self.timestep_fs,
            thermostat=thermostat,
            nmts=f"<nmts> [ 1, {self.mts} ] </nmts>" if self.mts else "",
        )


def write_setting(directory: Path, setting: Setting, seed: int = 0) -> None:
    """input.xml and the structure that it starts from."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "input.xml").write_text(setting.text())
    write_trajectory(
        directory / "start.xyz", setting, water_positions(setting, seed)[None], "positions", "angstrom"
    )


def water_positions(setting: Setting, seed: int = 0) -> np.ndarray:
    """Waters of correct geometry on a lattice, turned at random, and ions on its other sites, (n_atoms, 3) A."""
    rng = np.random.default_rng(seed)
    geometry = np.array([[0.0, 0.0, 0.0], [0.9572, 0.0, 0.0], [-0.24, 0.9266, 0.0]])
    n_places = setting.n_waters + setting.n_ions
    side = int(np.ceil(n_places ** (1 / 3)))
    places = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n_places]
    waters, ions = np.split(places * setting.box / side, [setting.n_waters])
    turns = np.linalg.qr(rng.normal(size=(setting.n_waters, 3, 3)))[0]
    turned = np.einsum("mij,aj->mai", turns, geometry)
    return np.concatenate([(waters[:, None] + turned).reshape(-1, 3), ions])


def ornstein_uhlenbeck(
    n_frames: int, shape: tuple[int, ...], steps: float, rng: np.random.Generator
) -> np.ndarray:
    """Stationary series of unit variance and correlation time `steps`, (n_frames, *shape)."""
    keep = np.exp(-1.0 / steps) if steps > 0 else 0.0
    kicks = rng.normal(size=(n_frames, *shape)) * np.sqrt(1.0 - keep**2)
    kicks[0] /= np.sqrt(1.0 - keep**2)
    return lfilter([1.0], [1.0, -keep], kicks, axis=0)


def water_velocities(setting: Setting, n_frames: int, seed: int, *, tau_ps: float = 0.05) -> np.ndarray:
    """Maxwell-Boltzmann velocities, the centre of mass and fixed atoms at rest, (n_frames, n_atoms, 3) A/ps.

    As in i-PI, the centre of mass is free where atoms are fixed.
    """
    rng = np.random.default_rng(seed)
    masses = setting.masses[:, None]
    unit = ornstein_uhlenbeck(n_frames, (len(masses), 3), tau_ps / setting.interval_ps, rng)
    velocities = unit * np.sqrt(K_B * setting.temperature_K / (KINETIC * masses))
    velocities[:, list(setting.fixed)] = 0.0
    if setting.fixcom and not setting.fixed:
        velocities -= (masses * velocities).sum(axis=1, keepdims=True) / masses.sum()
    return velocities


def kinetic_energies(setting: Setting, velocities: np.ndarray) -> dict[str, np.ndarray]:
    """Kinetic energy of all atoms ("") and of each species along the run, eV."""
    by_atom = 0.5 * KINETIC * setting.masses * (velocities**2).sum(axis=2)
    labels = np.array(setting.labels)
    return {"": by_atom.sum(axis=1)} | {
        label: by_atom[:, labels == label].sum(axis=1) for label in ("O", "H")
    }


def write_table(path: Path, columns: dict[str, np.ndarray]) -> None:
    """A properties file; keys as in i-PI's input: temperature(O){kelvin}."""
    lines = [f"# column {place:3d}     --> {name} : help." for place, name in enumerate(columns, start=1)]
    rows = np.column_stack(list(columns.values()))
    body = ["  " + "   ".join(f"{number:18.10e}" for number in row) for row in rows]
    path.write_text("\n".join([*lines, *body]) + "\n")


def write_trajectory(
    path: Path,
    setting: Setting,
    frames: np.ndarray,
    quantity: str,
    unit: str,
    *,
    mode: str = "xyz",
    bead: int = 0,
) -> None:
    """A trajectory, by i-PI's own writer. `frames` (n_frames, n_atoms, 3) in `unit`."""
    dimension = {"positions": "length", "x_centroid": "length", "velocities": "velocity"}.get(
        quantity, "force"
    )
    atoms, cell = IpiAtoms(frames.shape[1]), IpiCell()
    atoms.names[:] = setting.labels[: frames.shape[1]]
    cell.h = np.eye(3) * setting.box * unit_to_internal("length", "angstrom", 1.0)
    scale = (
        unit_to_internal(dimension, unit, 1.0)
        if unit != "a/ps"
        else 1e2 * unit_to_internal("velocity", "m/s", 1.0)
    )
    written = {"a/ps": "m/s"}.get(unit, unit)
    with path.open("w") as stream:
        for number, frame in enumerate(frames):
            atoms.q[:] = frame.ravel() * scale
            title = f"Step:  {number * setting.stride:10d}  Bead:   {bead:5d} "
            cell_unit = "ase" if mode == "ase" else "angstrom"
            print_file(mode, atoms, cell, stream, title, quantity, dimension, written, cell_unit)


def clean_columns(
    setting: Setting, n_frames: int, seed: int, velocities: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Columns of a sound run: `conserved` is bounded noise, temperatures are those of the velocities.

    As in i-PI, temperatures hold the target temperature for what the fixed centre of mass, or fixed atoms, take.
    """
    rng = np.random.default_rng(seed + 10**6)
    if velocities is None:
        velocities = water_velocities(setting, n_frames, seed)
    energies = kinetic_energies(setting, velocities)
    columns = {"step": np.arange(n_frames) * float(setting.stride)}
    columns["time{picosecond}"] = np.arange(n_frames) * setting.interval_ps
    noise = ornstein_uhlenbeck(n_frames, (), 3.0, rng) * 0.01
    columns["conserved{electronvolt}"] = -900.0 + noise
    columns["potential{electronvolt}"] = -903.0 + ornstein_uhlenbeck(n_frames, (), 20.0, rng) * 0.3
    columns["kinetic_md{electronvolt}"] = energies[""]
    for label in ("O", "H"):
        chosen = np.array(setting.labels) == label
        n_own = np.count_nonzero(chosen)
        share = setting.masses[chosen].sum() / setting.masses.sum() if setting.fixcom else 0.0
        removed = 3.0 * (np.count_nonzero(chosen[list(setting.fixed)]) if setting.fixed else share)
        padding = removed * setting.temperature_K
        columns[f"temperature({label}){{kelvin}}"] = (2.0 * energies[label] / K_B + padding) / (3.0 * n_own)
    return columns


def ring_polymer_columns(
    setting: Setting, n_frames: int, seed: int, internal_K: float
) -> dict[str, np.ndarray]:
    """Columns of a ring polymer with the centroid at the target and the internal modes at `internal_K`.

    Kinetic energies of modes are chi-squared variables; K_cv and K_td differ by what the internal modes account for.
    """
    rng = np.random.default_rng(seed)
    target, n_beads, n_atoms = setting.temperature_K, setting.n_beads, 3 * setting.n_waters
    freedom = np.array([3 * n_atoms - 3] + [3 * n_atoms] * (n_beads - 1))
    means = np.array([target] + [internal_K] * (n_beads - 1))
    noise = ornstein_uhlenbeck(n_frames, (n_beads,), 3.0, rng)
    modes = means * (1.0 + noise * np.sqrt(2.0 / freedom))
    columns = clean_columns(with_(setting, n_beads=1), n_frames, seed)
    columns["kinetic_md{electronvolt}"] = 0.5 * K_B * (modes @ freedom)
    whole = (modes @ freedom + 3.0 * target) / (3 * n_atoms * n_beads)
    columns["temperature{kelvin}"] = whole
    for mode in range(n_beads):
        padding = 3.0 * target if mode == 0 else 0.0
        columns[f"temperature(nm={mode}){{kelvin}}"] = (modes[:, mode] * freedom[mode] + padding) / (
            3 * n_atoms
        )
    virial = 30.0 + ornstein_uhlenbeck(n_frames, (), 3.0, rng) * 0.3
    internal = 1.5 * n_atoms * (n_beads - 1) * K_B * (modes[:, 1:].mean(axis=1) - target)
    columns["kinetic_cv{electronvolt}"] = virial
    columns["kinetic_td{electronvolt}"] = virial - internal
    return columns


def write_clean(
    directory: Path, setting: Setting, n_frames: int, seed: int = 0, **changed: np.ndarray
) -> Path:
    """A sound run with only its properties; returns its directory."""
    write_setting(directory, setting)
    write_table(directory / "simulation.out", clean_columns(setting, n_frames, seed) | changed)
    return directory


def with_(setting: Setting, **changes: object) -> Setting:
    """A setting with other fields."""
    return replace(setting, **changes)  # type: ignore[arg-type]
