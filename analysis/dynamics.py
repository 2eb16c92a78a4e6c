"""Dynamics: velocity spectrum, temperature by frequency, mean-squared displacement, diffusion.

Units: wavenumbers in 1/cm, spectra in K cm (their integral over wavenumbers is the kinetic temperature in K), times in ps,
diffusion in A^2/ps (= 1e-8 m^2/s).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.errors import AnalysisError, MissingOutput, TooShort
from analysis.evidence import fastest_vibration
from analysis.kinetics import degrees_of_freedom
from analysis.molecules import Molecules, centre_quantities, find_molecules, nearest_images
from analysis.run import Run
from analysis.series import FloatArray
from analysis.statistics import Estimate, from_blocks
from analysis.trajectories import Trajectory
from analysis.units import boltzmann, kinetic_unit

LIGHT_CM_PER_PS = 0.0299792458
WINDOW_PS = 2.0  # resolution of a spectrum: 17 1/cm
NYQUIST_MARGIN = 1.1  # over the fastest vibration
MAX_WINDOWS = 40
MIN_WINDOWS = 4
BANDS = (
    (0.0, 300.0),
    (300.0, 1000.0),
    (1000.0, 2500.0),
    (2500.0, 4500.0),
)  # 1/cm: hindered motion ... stretches
MAX_DISPLACEMENT_FRAMES = 20_000
DIFFUSION_BLOCKS = 8
BALLISTIC_PS = 1.0
YEH_HUMMER = 2.837297  # of a cubic box
JOULE_PER_EV = 1.602176634e-19


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Mass-weighted velocity spectrum, window by window."""

    wavenumber: FloatArray  # (n_bins,) 1/cm
    windows: FloatArray  # (n_windows, n_bins) K cm; their mean integrates to the kinetic temperature

    @property
    def density(self) -> FloatArray:
        return np.asarray(self.windows.mean(axis=0))

    @property
    def error(self) -> FloatArray:
        """Standard error from the scatter between windows, (n_bins,) K cm."""
        return np.asarray(self.windows.std(axis=0, ddof=1) / np.sqrt(len(self.windows)))

    def band(self, low: float, high: float) -> Estimate:
        """Kinetic temperature carried between two wavenumbers, in K: a share of the whole, not the band's own."""
        inside = (self.wavenumber >= low) & (self.wavenumber < high)
        width = self.wavenumber[1] - self.wavenumber[0]
        return from_blocks(self.windows[:, inside].sum(axis=1) * width, "K")

    def centre(self, low: float, high: float) -> Estimate:
        """Mean wavenumber of a band, by jackknife over windows."""
        inside = (self.wavenumber >= low) & (self.wavenumber < high)
        own, weights = self.wavenumber[inside], self.windows[:, inside]
        n_windows, total = len(weights), weights.sum(axis=0)
        without = total - weights
        values = (without @ own) / without.sum(axis=1)
        error = np.sqrt((n_windows - 1) / n_windows * np.sum((values - values.mean()) ** 2))
        return Estimate(float(total @ own / total.sum()), float(error), "1/cm", float(n_windows))


def velocity_spectrum(run: Run, atom: str = "") -> Spectrum:
    """Power spectrum of the mass-weighted velocities of all atoms, or of one species.

    g(nu) = sum_i PSD(sqrt(m_i) v_i) / (n_freedom k_B), one-sided, from Hann windows of 2 ps spread over the run
    (`scipy.signal.periodogram`, Welch's method without overlap). With several beads these are the centroids' velocities.

    Raises:
        MissingOutput: no velocities, no input to tell their time step, or velocities that are written so rarely that the
            fastest vibration of the species present would be folded to lower frequencies.
        TooShort: fewer than 4 windows.
    """
    from scipy.signal import periodogram

    trajectory = run.trajectory(centre_quantities(run)[1])
    interval = frame_interval_ps(run, trajectory)
    freedom = degrees_of_freedom(run, atom, 0).remaining
    if freedom <= 0.0:
        raise AnalysisError(f"no spectrum of {atom or 'the velocities'}: the input holds all of it fixed")
    highest = NYQUIST_MARGIN * fastest_vibration(run)
    longest = 0.5 / (highest * LIGHT_CM_PER_PS)
    if interval > longest:
        raise MissingOutput(
            f"{trajectory.quantity} are written every {interval * 1e3:g} fs, too rarely for a spectrum: what vibrates at up "
            f"to {highest:.0f} 1/cm would show at lower frequencies; write them every {np.floor(2e3 * longest) / 2:g} fs or less"
        )
    length = round(WINDOW_PS / interval)
    if trajectory.n_frames < MIN_WINDOWS * length:
        raise TooShort(
            f"a spectrum wants {MIN_WINDOWS * WINDOW_PS:g} ps of velocities, got {trajectory.n_frames * interval:.2f} ps"
        )
    chosen = run.atoms.where(atom)
    weights = run.atoms.masses[chosen][:, None] * kinetic_unit() / (boltzmann() * freedom)
    rows = []
    for window in trajectory.windows(MAX_WINDOWS, length):
        frequency, power = periodogram(
            window.values[:, chosen], fs=1.0 / interval, window="hann", detrend=False, axis=0
        )
        rows.append((power * weights).sum(axis=(1, 2)) * LIGHT_CM_PER_PS)
    return Spectrum(wavenumber=frequency / LIGHT_CM_PER_PS, windows=np.array(rows))


def band_temperatures(
    spectrum: Spectrum, reference: Spectrum, reference_K: float
) -> dict[tuple[float, float], Estimate]:
    """T(omega) by bands: T_ref times the ratio of what both spectra hold in a band.

    Assumes that the reference sampled the same density of states in equilibrium at `reference_K`; a band in which the
    reference holds less than 1 % of the kinetic energy is left out, and one that is not whole in either spectrum.
    """
    found = {}
    total = reference.band(0.0, np.inf).value
    for low, high in BANDS:
        own, other = spectrum.band(low, high), reference.band(low, high)
        if other.value < 0.01 * total or not comparable(spectrum, reference, low, high):
            continue
        ratio = own.value / other.value
        relative = float(np.hypot(own.error / own.value, other.error / other.value))
        n_effective = min(own.n_effective, other.n_effective)
        found[(low, high)] = Estimate(reference_K * ratio, reference_K * ratio * relative, "K", n_effective)
    return found


def comparable(spectrum: Spectrum, reference: Spectrum, low: float, high: float) -> bool:
    """Whether both spectra hold a band, neither hiding beyond its Nyquist frequency what the other has there."""
    both = (spectrum, reference)
    limit = min(float(own.wavenumber[-1]) for own in both)
    if low >= limit or any(own.band(low, high).value <= 0.0 for own in both):
        return False
    beyond = float(np.nextafter(limit, np.inf))
    return all(own.band(beyond, high).value < 0.01 * own.band(low, high).value for own in both)


def frame_interval_ps(run: Run, trajectory: Trajectory) -> float:
    """Time between two frames, from their steps and the time step of the input."""
    if trajectory.n_frames < 2:
        raise TooShort(f"{trajectory.path.name}: wanted at least 2 frames, got {trajectory.n_frames}")
    times = run.frame_times_ps(np.array([trajectory.step(0), trajectory.step(1)]))
    if times[1] <= times[0]:
        raise MissingOutput(
            f"{trajectory.path.name}: the input gives its motion no time step, frames have no times"
        )
    return float(times[1] - times[0])


@dataclass(frozen=True, eq=False)
class Displacement:
    """Mean-squared displacement of molecular centres, block by block."""

    lag_ps: FloatArray  # (n_lags,)
    blocks: FloatArray  # (n_blocks, n_lags) A^2

    @property
    def mean(self) -> FloatArray:
        return np.asarray(self.blocks.mean(axis=0))


def centres(run: Run, trajectory: Trajectory, molecules: Molecules, stride: int) -> FloatArray:
    """Unwrapped centres of mass of molecules, (n_frames, n_molecules, 3) A, without those that hold fixed atoms.

    The drift of the whole is removed, unless atoms are fixed, with respect to which all others move.
    """
    masses = run.atoms.masses
    owner = molecules.atom_to_molecule
    fixed = run.fixed_atoms
    is_free = ~np.isin(np.arange(molecules.n_molecules), owner[fixed])
    if not is_free.any():
        raise AnalysisError(f"{run.name}: no diffusion, every molecule holds fixed atoms")
    total = np.bincount(owner, weights=masses)
    found, last, path = [], None, None
    for block in trajectory.blocks(stride=stride):
        for where, cell in zip(block.values, block.cells, strict=True):
            path = where if last is None or path is None else path + nearest_images(where - last, cell)
            last = where
            centre = np.stack(
                [np.bincount(owner, weights=masses * path[:, axis]) for axis in range(3)], axis=1
            )
            drift = 0.0 if fixed else (masses @ path) / masses.sum()
            found.append((centre / total[:, None] - drift)[is_free])
    return np.array(found)


def displacement(run: Run) -> Displacement:
    """Mean-squared displacement of molecular centres (of atoms, where nothing is bonded), by FFT (tidynamics).

    Raises:
        MissingOutput: no positions (centroids with several beads).
        TooShort: too short for blocks of twice the ballistic time.
    """
    import tidynamics

    trajectory = run.trajectory(centre_quantities(run)[0])
    stride = -(-trajectory.n_frames // MAX_DISPLACEMENT_FRAMES)
    interval = frame_interval_ps(run, trajectory) * stride
    first = trajectory.frames(0, 1)
    paths = centres(run, trajectory, find_molecules(run.atoms, first.values[0], first.cells[0]), stride)
    n_blocks = min(DIFFUSION_BLOCKS, int(len(paths) * interval / (4.0 * BALLISTIC_PS)))
    if n_blocks < 4 or len(paths) // n_blocks < 16:
        raise TooShort(
            f"diffusion wants at least {16.0 * BALLISTIC_PS:g} ps and 64 frames of {trajectory.quantity}, got "
            f"{len(paths) * interval:.2f} ps and {len(paths)} frames"
        )
    length = len(paths) // n_blocks
    curves = [
        np.mean(
            [tidynamics.msd(block[:, molecule])[: length // 2] for molecule in range(block.shape[1])], axis=0
        )
        for block in np.split(paths[: n_blocks * length], n_blocks)
    ]
    return Displacement(lag_ps=np.arange(length // 2, dtype=np.float64) * interval, blocks=np.array(curves))


def diffusion(moved: Displacement) -> Estimate:
    """Self-diffusion coefficient in A^2/ps: a sixth of the slope of the mean-squared displacement, block by block.

    Fitted from the end of the ballistic regime (1 ps) to half a block. Includes the finite size of the box: see
    `finite_size_correction`.
    """
    fitted = moved.lag_ps >= BALLISTIC_PS
    slopes = [np.polyfit(moved.lag_ps[fitted], curve[fitted], 1)[0] / 6.0 for curve in moved.blocks]
    return from_blocks(np.array(slopes), "A^2/ps")


def finite_size_correction(temperature_K: float, viscosity_mPa_s: float, box: float) -> float:
    """What a cubic periodic box of edge `box` (A) takes from D, in A^2/ps: 2.837297 k_B T / (6 pi eta L).

    Yeh and Hummer, J. Phys. Chem. B 108, 15873 (2004). Add it to D of the box.
    """
    energy = boltzmann() * temperature_K * JOULE_PER_EV
    metres_squared_per_second = YEH_HUMMER * energy / (6.0 * np.pi * viscosity_mPa_s * 1e-3 * box * 1e-10)
    return float(metres_squared_per_second * 1e8)
