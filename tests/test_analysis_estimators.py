"""Estimators on systems whose answers are known: Ornstein-Uhlenbeck particles, harmonic oscillators, ideal gas."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import Run, read_run
from analysis.drift import (
    bath_heat,
    energy_drift,
    energy_fluctuation,
    friction_power,
    langevin_power,
    svr_power,
)
from analysis.dynamics import (
    Displacement,
    Spectrum,
    band_temperatures,
    centres,
    comparable,
    diffusion,
    displacement,
    finite_size_correction,
    velocity_spectrum,
)
from analysis.errors import AnalysisError, MissingOutput, TooShort
from analysis.kinetics import (
    degrees_of_freedom,
    moving_species,
    species_temperatures,
    temperature,
    temperature_series,
    width_temperature,
)
from analysis.molecules import Molecules, find_molecules, part_temperature_series, part_temperatures
from analysis.nonconservative import force_difference, nonconservative_power, power_series
from analysis.path_integrals import (
    estimator_mismatch,
    internal_temperature_series,
    mismatch_from_temperatures,
)
from analysis.statistics import Estimate
from analysis.structure import RadialDistribution, distance_between, radial_distributions
from analysis.trajectories import Trajectory
from analysis_runs import (
    K_B,
    KINETIC,
    Setting,
    clean_columns,
    kinetic_energies,
    ornstein_uhlenbeck,
    ring_polymer_columns,
    water_positions,
    water_velocities,
    with_,
    write_clean,
    write_setting,
    write_table,
    write_trajectory,
)

SETTING = Setting()


def with_trajectories(directory, setting: Setting, **frames: tuple[str, str, np.ndarray]) -> Run:
    """A run with properties and the trajectories {file: (quantity, unit, frames)}."""
    write_clean(directory, setting, 50)
    for name, (quantity, unit, values) in frames.items():
        write_trajectory(directory / f"simulation.{name}.xyz", setting, values, quantity, unit)
    return read_run(directory)


# Energy


def test_drift_per_atom_in_mev_per_ps(tmp_path):
    columns = clean_columns(SETTING, 2500, 1)
    rise = columns["conserved{electronvolt}"] + 0.192 * columns["time{picosecond}"]
    found = energy_drift(
        read_run(write_clean(tmp_path, SETTING, 2500, 1, **{"conserved{electronvolt}": rise}))
    )
    assert abs(found.sigmas_from(1.0)) < 3
    assert found.error < 0.01


def test_fluctuation_of_the_conserved_quantity_leaves_the_drift_out(tmp_path):
    columns = clean_columns(SETTING, 2500, 1)
    rise = columns["conserved{electronvolt}"] + 100.0 * columns["time{picosecond}"]
    run = read_run(write_clean(tmp_path, SETTING, 2500, 1, **{"conserved{electronvolt}": rise}))
    found = energy_fluctuation(run.series("conserved"), 192)
    assert abs(found.sigmas_from(0.01 * 1e3 / 192)) < 4


def test_heat_to_the_bath_is_what_conserved_has_beyond_the_energy(tmp_path):
    columns = clean_columns(SETTING, 500, 2)
    heat = 0.3 * columns["time{picosecond}"]
    columns["conserved{electronvolt}"] = (
        columns["potential{electronvolt}"] + columns["kinetic_md{electronvolt}"] + heat
    )
    run = read_run(write_clean(tmp_path, SETTING, 500, 2, **columns))
    np.testing.assert_allclose(bath_heat(run).values, heat, atol=1e-6)


def test_powers_of_published_runs_agree_across_two_decades_of_friction():
    """PET direct under Langevin: 12.8, 1.4 and 0.1 K above 300 K at 1000, 100 and 10 fs imply one power."""
    powers = [
        langevin_power(Estimate(excess, error, "K", 100.0), 3 * 192, tau, 192)
        for excess, error, tau in ((12.8, 0.5, 1000.0), (1.4, 0.2, 100.0), (0.1, 0.1, 10.0))
    ]
    assert powers[0].value == pytest.approx(3.31, abs=0.01)
    assert all(abs(own.minus(powers[0]).sigmas_from(0.0)) < 2 for own in powers)
    assert svr_power(Estimate(1.0, 0.1, "K", 9.0), 576, 10.0, 192).value * 2 == pytest.approx(
        langevin_power(Estimate(1.0, 0.1, "K", 9.0), 576, 10.0, 192).value
    )


# Temperatures


def test_oxygen_is_not_cold_with_the_correction_for_the_centre_of_mass_and_four_kelvin_cold_without(tmp_path):
    n_frames = 10_000
    velocities = water_velocities(SETTING, n_frames, 3, tau_ps=0.005)
    run = read_run(write_clean(tmp_path, SETTING, n_frames, 3))
    write_table(tmp_path / "simulation.out", clean_columns(SETTING, n_frames, 3, velocities))
    found = species_temperatures(run)
    assert all(abs(own.sigmas_from(300.0)) < 3.5 and own.error < 0.5 for own in found.values())
    naive = 2.0 * kinetic_energies(SETTING, velocities)["O"].mean() / (3 * 64 * K_B)
    assert naive - 300.0 == pytest.approx(-300.0 * 15.9994 / (64 * 18.01528), abs=1.0)  # -4.16 K


@pytest.mark.parametrize("ensemble", ["nvt", "nve"])
@pytest.mark.parametrize("fixcom", [True, False])
def test_temperature_columns_and_kinetic_columns_tell_the_same(tmp_path, ensemble, fixcom):
    setting = with_(SETTING, ensemble=ensemble, fixcom=fixcom)
    columns = clean_columns(setting, 100, 4)
    velocities = water_velocities(setting, 100, 4)
    kinetic = {
        f"kinetic_md({label}){{electronvolt}}": kinetic_energies(setting, velocities)[label] for label in "OH"
    }
    run = read_run(write_clean(tmp_path / "t", setting, 100, 4, **columns))
    other = read_run(write_clean(tmp_path / "k", setting, 100, 4, **kinetic))
    for label in ("O", "H"):
        np.testing.assert_allclose(
            temperature_series(run, label).values, temperature_series(other, label).values, rtol=1e-5
        )


def test_degrees_of_freedom_of_species_add_up(tmp_path):
    run = read_run(write_clean(tmp_path, SETTING, 20))
    assert degrees_of_freedom(run).remaining == 3 * 192 - 3
    assert degrees_of_freedom(run, "O").remaining + degrees_of_freedom(run, "H").remaining == pytest.approx(
        3 * 192 - 3
    )
    ring = read_run(write_clean(tmp_path / "ring", with_(SETTING, n_beads=8), 20))
    assert degrees_of_freedom(ring).remaining == 3 * 192 * 8 - 3
    assert degrees_of_freedom(ring, mode=0).remaining == 3 * 192 - 3
    assert degrees_of_freedom(ring, mode=1).remaining == 3 * 192


def test_fixed_atoms_lose_their_part_of_every_mode(tmp_path):
    setting = with_(SETTING, n_beads=4, thermostat="pile_l", n_waters=2, fixed=(0, 1, 2, 3))
    run = read_run(write_clean(tmp_path, setting, 20))
    assert degrees_of_freedom(run).remaining == 3 * 2 * 4
    assert {degrees_of_freedom(run, mode=mode).remaining for mode in range(4)} == {6}
    assert degrees_of_freedom(run, "H", 2).remaining == 6
    assert moving_species(run) == ["H"]
    with pytest.raises(AnalysisError, match=r"T\(O\) is not defined, the input holds all of it fixed"):
        temperature_series(run, "O")


def test_species_with_fixed_atoms_have_the_temperature_of_those_that_move(tmp_path):
    setting = with_(SETTING, fixed=(0, 1, 2, 3))
    columns = clean_columns(setting, 3000, 4, water_velocities(setting, 3000, 4, tau_ps=0.002))
    run = read_run(write_clean(tmp_path, setting, 3000, 4, **columns))
    found = {"": temperature(run), **species_temperatures(run)}
    assert set(found) == {"", "O", "H"}
    assert all(abs(own.sigmas_from(300.0)) < 3.5 and own.error < 1.0 for own in found.values())


def test_centroids_under_constraint_take_three_degrees_of_freedom_of_each_atom(tmp_path):
    setting = with_(SETTING, n_beads=4, thermostat="pile_l", ensemble="nvt-cc")
    run = read_run(write_clean(tmp_path, setting, 20))
    assert degrees_of_freedom(run).remaining == 3 * 192 * 3
    assert degrees_of_freedom(run, "O").remaining == 3 * 64 * 3
    assert [degrees_of_freedom(run, mode=mode).remaining for mode in range(4)] == [0, 576, 576, 576]


def test_width_of_the_kinetic_energy_tells_the_temperature_as_physical_validation_does(tmp_path):
    run = read_run(write_clean(tmp_path, SETTING, 5000, 5))
    found = width_temperature(run)
    assert abs(found.sigmas_from(300.0)) < 3.5
    assert found.error < 15.0
    physical_validation = pytest.importorskip("physical_validation")
    import logging

    logging.getLogger("pymbar").setLevel(logging.ERROR)
    data = physical_validation.data.SimulationData(
        units=physical_validation.data.UnitData(
            kb=K_B, energy_str="eV", energy_conversion=96.485, length_str="A", length_conversion=0.1, volume_str="A^3",
            volume_conversion=1e-3, temperature_str="K", temperature_conversion=1.0, pressure_str="bar",
            pressure_conversion=1.0, time_str="ps", time_conversion=1.0,
        ),
        ensemble=physical_validation.data.EnsembleData("NVT", natoms=192, volume=1916.0, temperature=300.0),
        system=physical_validation.data.SystemData(natoms=192, nconstraints=0, ndof_reduction_tra=3, ndof_reduction_rot=0),
        observables=physical_validation.data.ObservableData(kinetic_energy=run.series("kinetic_md").values),
    )  # fmt: skip
    theirs = physical_validation.kinetic_energy.distribution(data, strict=False, verbosity=0, screen=False)
    assert max(np.abs(theirs)) < 4.0


def test_parts_of_molecules_have_the_temperature_of_the_bath(tmp_path):
    positions = np.repeat(water_positions(SETTING)[None], 600, axis=0)
    velocities = water_velocities(SETTING, 600, 6, tau_ps=0.004)
    run = with_trajectories(
        tmp_path, SETTING, pos=("positions", "angstrom", positions), vel=("velocities", "a/ps", velocities)
    )
    found = part_temperatures(run)
    assert set(found) == {"translation", "rotation", "vibration"}
    assert all(abs(own.sigmas_from(300.0)) < 3.5 and own.error < 3.0 for own in found.values())


def test_hot_translation_is_found_in_the_translation_only(tmp_path):
    positions = water_positions(SETTING)
    velocities = water_velocities(SETTING, 400, 7, tau_ps=0.004)
    masses = SETTING.masses.reshape(-1, 3)
    centres = np.einsum("ma,fmax->fmx", masses, velocities.reshape(400, -1, 3, 3)) / masses[0].sum()
    velocities += np.repeat((np.sqrt(1.2) - 1.0) * centres, 3, axis=1)
    run = with_trajectories(
        tmp_path, SETTING,
        pos=("positions", "angstrom", np.repeat(positions[None], 400, axis=0)), vel=("velocities", "a/ps", velocities),
    )  # fmt: skip
    found = part_temperatures(run)
    assert abs(found["translation"].sigmas_from(360.0)) < 3.5
    assert abs(found["rotation"].sigmas_from(300.0)) < 3.5
    assert abs(found["vibration"].sigmas_from(300.0)) < 3.5


def test_an_ion_takes_its_share_of_the_fixed_centre_of_mass(tmp_path):
    """26 waters and one Cl: 3 x 26 - 3 M_water/M degrees of freedom of translation, 3.6 % fewer than 3 x 26."""
    setting = with_(SETTING, n_waters=26, n_ions=1)
    n_frames = 1000
    positions = np.repeat(water_positions(setting)[None], n_frames, axis=0)
    velocities = water_velocities(setting, n_frames, 8, tau_ps=0.002)
    run = with_trajectories(
        tmp_path, setting, pos=("positions", "angstrom", positions), vel=("velocities", "a/ps", velocities)
    )
    masses = setting.masses
    assert part_temperature_series(run)["translation"][1] == pytest.approx(
        3 * 26 - 3 * masses[:-1].sum() / masses.sum()
    )
    found = part_temperatures(run)
    assert all(abs(own.sigmas_from(300.0)) < 3.5 for own in found.values())
    assert found["translation"].error < 2.5


def test_molecules_with_fixed_atoms_are_left_out(tmp_path):
    """Fixed atoms free the centre of mass, whatever `fixcom` says."""
    setting = with_(SETTING, n_waters=27, fixed=(0, 1, 2, 3, 7))  # one water, an O, an H
    positions = np.repeat(water_positions(setting)[None], 800, axis=0)
    velocities = water_velocities(setting, 800, 9, tau_ps=0.002)
    run = with_trajectories(
        tmp_path, setting, pos=("positions", "angstrom", positions), vel=("velocities", "a/ps", velocities)
    )
    assert run.facts is not None
    assert not run.facts.fixcom
    assert {part: own[1] for part, own in part_temperature_series(run).items()} == {
        "translation": 72, "rotation": 72, "vibration": 72,
    }  # fmt: skip
    assert all(abs(own.sigmas_from(300.0)) < 3.5 for own in part_temperatures(run).values())
    all_fixed = with_(setting, fixed=tuple(range(0, 81, 3)))
    write_setting(tmp_path, all_fixed)
    with pytest.raises(AnalysisError, match="all of them hold fixed atoms"):
        part_temperatures(read_run(tmp_path))


def test_molecules_are_found_across_the_boundary(tmp_path):
    run = read_run(write_clean(tmp_path, SETTING, 20))
    shifted = (water_positions(SETTING) + 0.3) % SETTING.box
    found = find_molecules(run.atoms, shifted, np.eye(3) * SETTING.box)
    assert found.n_molecules == 64
    assert {size: len(members) for size, members in found.by_size().items()} == {3: 64}


# Dynamics


def test_spectrum_integrates_to_the_temperature_and_is_lorentzian_for_ou_velocities(tmp_path):
    setting = with_(SETTING, n_waters=27, fixcom=False)
    velocities = water_velocities(setting, 4000, 8, tau_ps=0.05)
    run = with_trajectories(tmp_path, setting, vel=("velocities", "a/ps", velocities))
    spectrum = velocity_spectrum(run)
    assert abs(spectrum.band(0.0, np.inf).sigmas_from(300.0)) < 4
    light = 0.0299792458
    omega_tau = 2 * np.pi * spectrum.wavenumber * light * 0.05
    exact = 300.0 * 4 * 0.05 * light / (1 + omega_tau**2)
    inside = (spectrum.wavenumber > 40) & (spectrum.wavenumber < 600)
    np.testing.assert_allclose(spectrum.density[inside], exact[inside], rtol=0.15)


def oscillating(wavenumber: float, stride: int, n_frames: int) -> tuple[Setting, tuple[str, str, np.ndarray]]:
    """Two waters of which every atom swings at one frequency, in steps of 0.5 fs."""
    setting = with_(SETTING, n_waters=2, fixcom=False, stride=stride)
    times = np.arange(n_frames) * setting.interval_ps
    phases = np.random.default_rng(9).uniform(0, 2 * np.pi, (6, 3))
    velocities = 5.0 * np.cos(2 * np.pi * wavenumber * 0.0299792458 * times[:, None, None] + phases)
    return setting, ("velocities", "a/ps", velocities)


def test_oscillator_stands_at_its_wavenumber(tmp_path):
    setting, frames = oscillating(3400.0, 4, n_frames=6000)
    run = with_trajectories(tmp_path, setting, vel=frames)
    spectrum = velocity_spectrum(run)
    assert spectrum.wavenumber[np.argmax(spectrum.density)] == pytest.approx(3400.0, abs=17.0)
    assert spectrum.centre(3000.0, 3800.0).value == pytest.approx(3400.0, abs=2.0)


@pytest.mark.parametrize("stride", [10, 12, 16])
def test_velocities_that_would_fold_a_stretch_to_lower_frequencies_make_no_spectrum(tmp_path, stride):
    """3400 1/cm written every 8 fs would show at 767 1/cm, a beat with the 4167 1/cm of the frames."""
    setting, frames = oscillating(3400.0, stride, n_frames=1600)
    run = with_trajectories(tmp_path, setting, vel=frames)
    with pytest.raises(MissingOutput, match=r"too rarely.*up to 4054 1/cm.*write them every 4 fs or less"):
        velocity_spectrum(run)


def test_without_hydrogen_velocities_may_be_written_more_rarely(tmp_path):
    setting, frames = oscillating(1900.0, 14, n_frames=1200)
    heavy = '<masses mode="manual" units="dalton"> [' + ",".join(["16"] * 6) + "] </masses>"
    run = with_trajectories(tmp_path, setting, vel=frames)
    text = (tmp_path / "input.xml").read_text().replace("</initialize>", heavy + "</initialize>")
    (tmp_path / "input.xml").write_text(text)
    spectrum = velocity_spectrum(read_run(tmp_path))
    assert spectrum.wavenumber[np.argmax(spectrum.density)] == pytest.approx(1900.0, abs=17.0)
    with pytest.raises(MissingOutput, match="every 4 fs or less"):
        velocity_spectrum(run)


def test_bands_that_one_spectrum_cannot_hold_are_not_compared():
    def spectrum(nyquist: float, *bands: tuple[float, float]) -> Spectrum:
        wavenumber = np.arange(0.0, nyquist, 17.0)
        inside = np.any([(wavenumber >= low) & (wavenumber < high) for low, high in bands], axis=0)
        return Spectrum(wavenumber, np.outer([0.9, 1.0, 1.1], inside.astype(float)))

    whole = spectrum(4170.0, (0.0, 600.0), (3300.0, 3500.0))
    low_only = {(0.0, 300.0), (300.0, 1000.0)}
    for other in (
        spectrum(2084.0, (0.0, 600.0)),
        spectrum(2780.0, (0.0, 600.0), (2600.0, 2700.0)),
        spectrum(4170.0, (0.0, 600.0)),
    ):
        assert set(band_temperatures(other, whole, 300.0)) == low_only
        assert set(band_temperatures(whole, other, 300.0)) <= low_only
        assert not comparable(whole, other, 2500.0, 4500.0)
    finer = spectrum(8340.0, (0.0, 600.0), (3300.0, 3500.0))
    assert set(band_temperatures(whole, finer, 300.0)) == low_only | {(2500.0, 4500.0)}


def test_hot_band_is_found_against_a_reference():
    rng = np.random.default_rng(10)
    wavenumber = np.linspace(0, 4400, 265)
    flat = 300.0 / 4400.0 * (1 + 0.05 * rng.normal(size=(2, 40, 265)))
    hot = flat[0] * np.where(wavenumber > 2500.0, 1.1, 1.0)
    found = band_temperatures(Spectrum(wavenumber, hot), Spectrum(wavenumber, flat[1]), 300.0)
    assert abs(found[(2500.0, 4500.0)].sigmas_from(330.0)) < 4
    assert abs(found[(300.0, 1000.0)].sigmas_from(300.0)) < 4


def test_velocities_that_are_too_rare_for_a_spectrum_say_so(tmp_path):
    setting = with_(SETTING, n_waters=2, stride=400)
    run = with_trajectories(tmp_path, setting, vel=("velocities", "a/ps", water_velocities(setting, 50, 1)))
    with pytest.raises(MissingOutput, match="written every 200 fs, too rarely"):
        velocity_spectrum(run)


def diffusing(setting: Setting, n_frames: int, seed: int, tau_ps: float) -> np.ndarray:
    """Positions of rigid waters whose centres are OU in velocity: D = k_B T tau/M, wrapped into the box."""
    rng = np.random.default_rng(seed)
    unit = ornstein_uhlenbeck(n_frames, (setting.n_waters, 3), tau_ps / setting.interval_ps, rng)
    centres = np.cumsum(unit * np.sqrt(K_B * 300.0 / (KINETIC * 18.01528)), axis=0) * setting.interval_ps
    path = water_positions(setting)[None] + np.repeat(centres, 3, axis=1)
    return path % setting.box


def test_diffusion_of_langevin_particles_is_the_exact_one(tmp_path):
    setting = with_(SETTING, n_waters=27, stride=80)
    run = with_trajectories(
        tmp_path, setting, pos=("positions", "angstrom", diffusing(setting, 2000, 11, 0.1))
    )
    moved = displacement(run)
    found = diffusion(moved)
    exact = K_B * 300.0 * 0.1 / (KINETIC * 18.01528) * (26 / 27)  # the drift of the whole is taken out
    assert abs(found.sigmas_from(exact)) < 3.5
    assert found.error < 0.15 * exact
    ballistic = 3 * K_B * 300.0 / (KINETIC * 18.01528)
    assert moved.mean[1] / moved.lag_ps[1] ** 2 == pytest.approx(ballistic, rel=0.25)


def test_molecules_that_are_held_do_not_diffuse_and_are_not_counted(tmp_path):
    setting = with_(SETTING, n_waters=27, stride=80)
    path = diffusing(setting, 2000, 11, 0.1)
    free = centres(
        *centres_wants(with_trajectories(tmp_path / "free", setting, pos=("positions", "angstrom", path)))
    )
    held = tuple(range(3 * 9))
    path[:, held] = path[0, held]
    some_held = with_(setting, fixed=held)
    run = with_trajectories(tmp_path / "held", some_held, pos=("positions", "angstrom", path))
    moved = centres(*centres_wants(run))
    assert moved.shape == (2000, 18, 3)
    apart = (moved - moved[0]) - (free - free[0])[:, 9:]
    # The same paths, up to the drift of the whole, which is not taken out here.
    assert np.ptp(apart, axis=1).max() < 1e-3


def centres_wants(run: Run) -> tuple[Run, Trajectory, Molecules, int]:
    """What `centres` wants of a run."""
    trajectory = run.trajectory("positions")
    first = trajectory.frames(0, 1)
    return run, trajectory, find_molecules(run.atoms, first.values[0], first.cells[0]), 1


def test_short_trajectory_says_how_much_diffusion_wants(tmp_path):
    setting = with_(SETTING, n_waters=8, stride=80)
    run = with_trajectories(
        tmp_path, setting, pos=("positions", "angstrom", diffusing(setting, 100, 11, 0.1))
    )
    with pytest.raises(TooShort, match=r"at least 16 ps and 64 frames of positions, got 4\.00 ps"):
        displacement(run)


def test_diffusion_is_a_sixth_of_the_slope():
    lag = np.arange(200) * 0.05
    moved = Displacement(lag, np.array([6.0 * d * lag + 1.0 for d in (0.9, 1.0, 1.1, 1.0)]))
    assert diffusion(moved).value == pytest.approx(1.0)


def test_finite_size_correction_of_water_is_that_of_yeh_and_hummer():
    """298 K, 0.896 mPa s, 64 waters (L = 12.42 A): about 0.056 A^2/ps, a quarter of D."""
    found = finite_size_correction(298.0, 0.896, 12.42)
    by_hand = 2.837297 * 1.380649e-23 * 298.0 / (6 * np.pi * 0.896e-3 * 12.42e-10) * 1e8
    assert found == pytest.approx(by_hand, rel=1e-5)
    assert found == pytest.approx(0.0557, abs=0.001)


# Structure


def test_ideal_gas_has_no_structure(tmp_path):
    rng = np.random.default_rng(12)
    frames = rng.uniform(0, SETTING.box, (200, 192, 3))
    run = with_trajectories(tmp_path, SETTING, pos=("positions", "angstrom", frames))
    found = radial_distributions(run)
    assert set(found) == {("O", "O"), ("O", "H"), ("H", "H")}
    for own in found.values():
        z = (own.mean[10:] - 1.0) / own.error[10:]
        assert np.abs(z.mean()) < 0.5
        assert 0.7 < z.std() < 1.8  # ten blocks: Student's law with 9 degrees of freedom


def test_lattice_has_its_shells_with_the_exact_coordination(tmp_path):
    side, edge = 4, 12.42 / 4
    places = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3) * edge
    setting = with_(SETTING, n_waters=64)
    write_setting(tmp_path, setting)
    text = (tmp_path / "input.xml").read_text()
    (tmp_path / "input.xml").write_text(text)
    frames = np.repeat(np.concatenate([places, places + 0.5 * edge, places + 0.25 * edge])[None], 20, axis=0)
    frames = frames[:, np.argsort(np.tile(np.arange(64), 3), kind="stable")]  # O, H, H of each cell together
    run = with_trajectories(tmp_path, setting, pos=("positions", "angstrom", frames))
    own = radial_distributions(run)[("O", "O")]
    density, inside = 63 / setting.box**3, own.distance < 3.8
    width = own.distance[1] - own.distance[0]
    shells = 4 * np.pi * (own.distance**2 + width**2 / 12) * width
    assert float((own.mean * shells)[inside].sum() * density) == pytest.approx(6.0, rel=1e-4)


def test_distance_between_equal_structures_is_noise_and_between_different_ones_is_not():
    rng = np.random.default_rng(13)
    distance = np.arange(0.025, 6.0, 0.05)
    shape = 1 + np.exp(-((distance - 2.8) ** 2) / 0.05)
    blocks = [shape + 0.1 * rng.normal(size=(10, len(distance))) for _ in range(2)]
    own, other = (RadialDistribution(("O", "O"), distance, part) for part in blocks)
    found, floor = distance_between(own, other)
    assert found.value == pytest.approx(floor, rel=0.2)
    moved = RadialDistribution(("O", "O"), distance, blocks[0] + shape - 1)
    assert distance_between(moved, other)[0].value > 2 * floor


# Forces and path integrals


def test_work_of_direct_forces_is_that_of_a_known_power(tmp_path):
    """f_D = f_C + c v does the work c sum v^2."""
    setting = with_(SETTING, role="direct", ensemble="nve")
    velocities = water_velocities(setting, 300, 14)
    truth = np.random.default_rng(15).normal(size=velocities.shape)
    run = with_trajectories(
        tmp_path, setting,
        vel=("velocities", "a/ps", velocities), fd=("forces_component_raw", "ev/ang", truth + 1e-4 * velocities),
        fc=("forces_component_raw", "ev/ang", truth),
    )  # fmt: skip
    found = nonconservative_power(run)
    exact = 1e-4 * (velocities**2).sum(axis=(1, 2)).mean() * 1e3 / 192
    assert found.value == pytest.approx(exact, rel=1e-2)
    apart = force_difference(run)
    assert apart.rms.value == pytest.approx(1e-4 * np.sqrt((velocities**2).mean()), rel=1e-2)
    assert apart.rms_by_species["H"].value > 3 * apart.rms_by_species["O"].value
    assert apart.correlation_ps.value == pytest.approx(0.05, rel=0.5)


def test_the_memory_of_the_difference_does_not_grow_with_the_length_of_the_run(tmp_path):
    """Frames every 4 fs with a memory of 20 fs; of 20,000 frames, 4000 spread evenly would show none below 10 fs each."""
    setting = with_(SETTING, role="direct", ensemble="nve", n_waters=2)
    apart = 0.1 * ornstein_uhlenbeck(20_000, (6, 3), 5.0, np.random.default_rng(3))
    run = with_trajectories(
        tmp_path, setting,
        fd=("forces_component_raw", "ev/ang", apart), fc=("forces_component_raw", "ev/ang", 0.0 * apart),
    )  # fmt: skip
    exact = 0.004 * 0.5 * (1.0 + np.exp(-0.2)) / (1.0 - np.exp(-0.2))
    assert force_difference(run).correlation_ps.value == pytest.approx(exact, rel=0.3)


@pytest.mark.parametrize("torn", ["fd", "fc", "vel"])
def test_work_is_taken_where_all_trajectories_have_frames(tmp_path, torn):
    """While a run goes on, the last frame of one file is there and that of another is not yet."""
    setting = with_(SETTING, role="direct", ensemble="nve", n_waters=2)
    velocities = water_velocities(setting, 40, 14)
    truth = np.random.default_rng(15).normal(size=velocities.shape)
    frames = {"vel": velocities, "fd": truth + 1e-4 * velocities, "fc": truth}
    frames[torn] = frames[torn][:-1]
    run = with_trajectories(
        tmp_path, setting,
        vel=("velocities", "a/ps", frames["vel"]), fd=("forces_component_raw", "ev/ang", frames["fd"]),
        fc=("forces_component_raw", "ev/ang", frames["fc"]),
    )  # fmt: skip
    exact = 1e-4 * (velocities[:39] ** 2).sum(axis=(1, 2)) * 1e3 / 6
    np.testing.assert_allclose(power_series(run).values, exact, rtol=0.02, atol=0.02 * exact.mean())
    assert force_difference(run).rms.value > 0


def test_work_is_not_defined_under_multiple_time_stepping(tmp_path):
    setting = with_(SETTING, role="direct", mts=8)
    frames = np.zeros((20, 192, 3))
    run = with_trajectories(tmp_path, setting, fc=("forces_component_raw", "ev/ang", frames))
    with pytest.raises(AnalysisError, match="single time steps only"):
        nonconservative_power(run)


def test_components_that_were_not_written_are_named(tmp_path):
    run = with_trajectories(tmp_path, with_(SETTING, role="direct"))
    with pytest.raises(MissingOutput, match=r"forces_component_raw\(1\)\{ev/ang\}"):
        force_difference(run)


@pytest.mark.parametrize(
    ("stated", "advice"),
    [(True, r"asks for conservative forces, for direct ones it does not; a <force weight='0'>"),
     (False, r"say <parameters>\{forces: direct\}</parameters>")],
)  # fmt: skip
def test_forces_of_a_kind_that_nobody_asked_for_are_not_blamed_on_the_parameters(tmp_path, stated, advice):
    forces = ("forces_component_raw", "ev/ang", np.zeros((20, 192, 3)))
    with_trajectories(tmp_path, SETTING, fd=forces, fc=forces)
    if not stated:
        text = (tmp_path / "input.xml").read_text()
        (tmp_path / "input.xml").write_text(
            text.replace("<parameters>{forces: conservative}</parameters>", "", 1)
        )
    with pytest.raises(MissingOutput, match=advice):
        force_difference(read_run(tmp_path))


@pytest.mark.parametrize(("pile_lambda", "n_beads"), [(1.0, 8), (0.5, 32)])
def test_friction_power_is_that_of_all_internal_modes_at_two_thousandths_of_a_kelvin(
    tmp_path, pile_lambda, n_beads
):
    setting = with_(SETTING, n_beads=n_beads, thermostat="pile_l")
    write_clean(tmp_path, setting, 20)
    text = (
        (tmp_path / "input.xml")
        .read_text()
        .replace("</tau>", f"</tau> <pile_lambda> {pile_lambda} </pile_lambda>")
    )
    (tmp_path / "input.xml").write_text(text)
    chain = n_beads * K_B * 300.0 / 6.582119569e-4  # 1/ps, P k_B T/hbar
    exact = 0.002 * 3e3 * K_B * 2.0 * pile_lambda * 2.0 * chain / np.tan(np.pi / (2 * n_beads))
    assert friction_power(read_run(tmp_path)) == pytest.approx(exact, rel=1e-4)
    baoab = text.replace("<dynamics ", "<dynamics splitting='baoab' ")
    (tmp_path / "input.xml").write_text(baoab)
    assert friction_power(read_run(tmp_path)) == pytest.approx(0.22 * exact, rel=1e-4)
    write_setting(tmp_path, with_(SETTING, n_beads=n_beads))
    assert friction_power(read_run(tmp_path)) == 0.0, "one friction for all beads"


def test_mismatch_of_estimators_follows_from_the_temperature_of_the_internal_modes(tmp_path):
    setting = with_(SETTING, n_beads=4, thermostat="pile_l")
    columns = ring_polymer_columns(setting, 2000, 16, 310.0)
    run = read_run(write_clean(tmp_path, setting, 2000, 16, **columns))
    assert internal_temperature_series(run).values.mean() == pytest.approx(310.0, abs=1.0)
    exact = 1.5 * 192 * 3 * K_B * 10.0
    assert abs(mismatch_from_temperatures(run, 300.0).sigmas_from(exact)) < 3.5
    assert abs(estimator_mismatch(run).sigmas_from(exact)) < 3.5
    assert abs(temperature(run, mode=0).sigmas_from(300.0)) < 3.5
