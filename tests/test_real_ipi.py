"""The main job on real i-PI: every way in which it talks, every kind of forces, against independent answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from real_ipi import Socket, Workplace, free_port, served, workplace

HARTREE_PER_BOHR2 = 2.0 * 0.036749326 / 1.8897261**2  # of a spring of 2 eV/A^2
IPI_HARMONIC = (
    '<ffdirect name="forces" pbc="false"><pes>harmonic</pes>'
    f"<parameters>{{k1: {HARTREE_PER_BOHR2!r}}}</parameters></ffdirect>"
)


@pytest.fixture
def place() -> Iterator[Workplace]:
    with workplace() as place:
        yield place


def test_a_trap_gives_the_trajectory_of_i_pi_s_own_harmonic_potential(place: Workplace) -> None:
    """i-PI's own PES through <ffdirect> is the oracle: same start, same integrator, other code for the forces."""
    place.write_input(Socket(), steps=20)
    place.run("harmonic:k=2.0")
    ours = (
        place.trajectory("simulation.pos_0.xyz"),
        place.trajectory("simulation.for_0.xyz"),
        place.properties(),
    )
    place.write_input(Socket(), steps=20, forcefields=IPI_HARMONIC)
    assert place.start_ipi().wait(60) == 0
    np.testing.assert_allclose(
        ours[0], place.trajectory("simulation.pos_0.xyz"), atol=2e-5
    )  # xyz has six digits
    np.testing.assert_allclose(ours[1], place.trajectory("simulation.for_0.xyz"), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(ours[2], place.properties(), rtol=1e-7)


THERMOSTAT = '<thermostat mode="pile_l"><tau units="femtosecond"> 100 </tau></thermostat>'
PATH_INTEGRAL = {"beads": 4, "steps": 5, "mode": "nvt", "dynamics": THERMOSTAT}


@pytest.fixture(scope="module")
def path_integral_reference() -> np.ndarray:
    """Properties of a short path-integral run whose forces never saw a socket."""
    with workplace() as place:
        place.write_input(Socket(), forcefields=IPI_HARMONIC, **PATH_INTEGRAL)
        assert place.start_ipi().wait(60) == 0
        return place.properties()


@pytest.mark.parametrize(
    ("mode", "consolidate", "batch_size"),
    [
        ("unix", True, 1),
        ("unix", False, 1),
        ("inet", True, 1),
        ("inet", False, 1),
        ("unix", True, 3),
        ("inet", True, 3),
    ],
)  # i-PI batches consolidated messages only
def test_every_form_of_the_protocol_gives_the_same_path_integral_run(
    place: Workplace, path_integral_reference: np.ndarray, mode: str, consolidate: bool, batch_size: int
) -> None:
    socket = Socket(mode=mode, port=free_port(), batch_size=batch_size, consolidate=consolidate)
    place.write_input(socket, **PATH_INTEGRAL)
    log = place.run("harmonic:k=2.0")
    np.testing.assert_allclose(place.properties(), path_integral_reference, rtol=1e-7)
    (part,) = served(log)
    if batch_size == 1:
        assert part == "24 conservative on 'forces'"
    else:  # the beads start as copies of one structure, which a batch cannot tell from padding
        assert 20 < int(part.split()[0]) <= 24


def test_multiple_time_stepping_asks_for_each_force_as_often_as_the_theory_says(place: Workplace) -> None:
    """10 outer steps of 8: the slow force at 11 geometries, the fast one at 81."""
    place.write_input(
        Socket("slow", "{forces: conservative}", mts_weights="[1, 0]"),
        Socket("fast", "{forces: direct}", mts_weights="[-1, 1]"),
        steps=10, timestep=4.0, dynamics="<nmts> [1, 8] </nmts>",
    )  # fmt: skip
    log = place.run("qtip4pf:direct=0.02")
    assert served(log) == ["81 direct on 'fast'", "11 conservative on 'slow'"]
    conserved = place.properties()[:, 1]
    assert (
        np.ptp(conserved) / 192 < 5e-4
    )  # eV per atom over 40 fs; plain direct forces leave this band (1.3e-3)


def test_blended_forces_are_the_weighted_mean_and_bring_the_conservative_energy(place: Workplace) -> None:
    forces, energies = {}, {}
    roles = {"conservative": "{forces: conservative}", "direct": "{forces: direct}",
             "blended": "{forces: blended, direct_fraction: 0.25}"}  # fmt: skip
    for name, parameters in roles.items():
        place.write_input(Socket(parameters=parameters), steps=1)
        place.run("qtip4pf:direct=0.05")
        forces[name] = place.trajectory("simulation.for_0.xyz")[0]
        energies[name] = place.properties()[0, 2]
    assert np.abs(forces["direct"] - forces["conservative"]).max() > 1e-2
    blend = 0.75 * forces["conservative"] + 0.25 * forces["direct"]
    np.testing.assert_allclose(forces["blended"], blend, atol=3e-5)  # xyz has six digits
    assert energies["conservative"] == energies["direct"] == energies["blended"]


def test_beads_that_ask_together_share_an_evaluation(place: Workplace) -> None:
    """How many do is up to i-PI: it sends what its main thread has queued when its polling thread looks, then waits."""
    place.write_input(Socket(), beads=8, steps=6)
    log = place.run("noop")
    assert served(log) == ["56 conservative on 'forces'"]
    line = next(line for line in log.splitlines() if "model calls" in line)
    assert 7 <= int(line.split(" model calls")[0].split()[-1]) < 56


def test_a_contracted_ring_polymer_with_mts_is_served_on_two_sockets_at_once(place: Workplace) -> None:
    place.write_input(
        Socket("slow", "{forces: conservative}", mts_weights="[1, 0]", n_beads=2),
        Socket("fast", "{forces: direct}", mts_weights="[0, 1]"),
        Socket("undo", "{forces: direct}", mts_weights="[-1, 0]", n_beads=2),
        beads=4, steps=2, timestep=2.0, mode="nvt", dynamics=f"<nmts> [1, 4] </nmts>{THERMOSTAT}",
    )  # fmt: skip
    log = place.run("lj:epsilon=0.01,sigma=1.5,cutoff=5.0,direct=0.05")
    counts = dict(reversed(part.split(" ", 1)) for part in served(log))
    assert int(counts["conservative on 'slow'"]) == 3 * 2
    assert int(counts["direct on 'fast'"]) == 9 * 4


def test_an_address_and_a_template_do_where_the_input_is_not_at_hand(place: Workplace) -> None:
    port = free_port()
    place.write_input(Socket(mode="inet", port=port), steps=3)
    log = place.run("noop", "-a", f"localhost:{port}", "-t", "structure.xyz", "--forces", "direct")
    assert served(log) == [f"4 direct on 'localhost:{port}'"]


def test_two_simulations_are_served_by_one_process(place: Workplace) -> None:
    place.write_input(Socket("first"), steps=5, name="input.xml")
    other = place.write_input(Socket("second"), steps=5, name="other.xml")
    other.write_text(other.read_text().replace('prefix="simulation"', 'prefix="other"'))
    second = place.start("i-pi", "other.xml", log="other.log")
    log = place.run("noop", "-i", "input.xml", "-i", "other.xml")
    assert second.wait(30) == 0
    assert served(log) == ["6 conservative on 'first'", "6 conservative on 'second'"]


def test_a_socket_can_choose_another_model(place: Workplace) -> None:
    place.write_input(
        Socket("main"), Socket("cheap", "{model: trap, forces: conservative}"), steps=2,
    )  # fmt: skip
    place.run("noop", "-i", "input.xml", "--also", "trap=harmonic:k=2.0")
    positions, forces = (
        place.trajectory("simulation.pos_0.xyz")[0],
        place.trajectory("simulation.for_0.xyz")[0],
    )
    np.testing.assert_allclose(forces, -2.0 * positions, rtol=1e-4, atol=1e-4)


def test_a_restart_is_an_input_too(place: Workplace) -> None:
    place.write_input(Socket(), steps=4)
    place.run("harmonic:k=2.0")
    restart = (
        (place.path / "RESTART")
        .read_text()
        .replace("<total_steps>4</total_steps>", "<total_steps>6</total_steps>")
    )
    (place.path / "input.xml").write_text(restart)
    log = place.run("harmonic:k=2.0")
    assert "O64 H128" in log
    assert place.properties()[-1, 0] == 6


def test_a_json_input_is_an_input_too(place: Workplace) -> None:
    place.write_input(Socket(), steps=2)
    place.start("i-pi-convert-input", "input.xml", "input.json", log="convert.log").wait(60)
    ipi = place.start_ipi("input.json")
    assert place.start_server("noop", "-i", "input.json").wait(60) == 0, place.read("server.log")
    assert ipi.wait(60) == 0
    assert served(place.read("server.log")) == ["3 conservative on 'forces'"]


def test_the_server_ends_when_i_pi_is_killed(place: Workplace) -> None:
    place.write_input(Socket(), steps=1_000_000)
    ipi, server = place.start_ipi(), place.start_server("noop")
    place.wait_until(lambda: len(place.properties()) > 5, "simulation.out")
    ipi.kill()
    assert server.wait(10) == 1
    assert "without EXIT" in place.read("server.log")
