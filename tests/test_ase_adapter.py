"""Any ASE calculator can be served, and says in one line why it cannot."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

from forceserver.errors import ModelError, UsageError
from forceserver.potentials import load_potential
from forceserver.potentials.ase import AsePotential
from forceserver.potentials.contract import assert_keeps_contract
from forceserver.potentials.interface import Batch, Evaluation, Potential
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind
from systems import dimer, from_ase, lj_crystal

EMT_SPEC = "ase:ase.calculators.emt:EMT"


class Trap(Calculator):
    """k |r|^2/2 for each atom, with the properties that a test wants it to have."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def __init__(self, *, k: float = 2.0, fault: str | None = None, **extra: Any) -> None:
        super().__init__()
        self.k = k
        self.fault = fault
        self.extra = extra

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = None) -> None:
        super().calculate(atoms, properties, system_changes)
        if self.fault == "memory":
            raise MemoryError
        if self.fault == "convergence":
            raise RuntimeError("step 1\nthe density does not converge")
        energy = 0.5 * self.k * float((self.atoms.positions**2).sum())
        self.results = {
            "energy": energy + 7.0,
            "free_energy": energy,
            "forces": -self.k * self.atoms.positions,
        }


class SmearedTrap(Trap):
    """Its energy, extrapolated to no smearing, is not the one that its forces are derivatives of."""

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]


class ForcelessTrap(Trap):
    implemented_properties: ClassVar[list[str]] = ["energy"]


def metal(*, periodic: bool = True, seed: int = 0) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms[0].symbol = "Au"
    atoms.rattle(0.1, seed=seed)
    if not periodic:
        atoms.set_cell(None)
        atoms.pbc = False
    return atoms


def evaluate(
    potential: Potential, *frames: Atoms, want: frozenset[ForceKind] = frozenset({CONSERVATIVE})
) -> Evaluation:
    structures = [from_ase(frame) for frame in frames]
    return potential(Batch.from_structures(structures, dtype=torch.float64, device=torch.device("cpu")), want)


def test_calculator_keeps_the_contract() -> None:
    structures = [from_ase(metal()), from_ase(metal(periodic=False)), from_ase(bulk("Cu") * (1, 1, 2))]
    structures[2].positions[0] += 0.1
    assert_keeps_contract(load_potential(EMT_SPEC), structures)


def test_calculator_with_arguments_keeps_the_contract() -> None:
    spec = "ase:ase.calculators.lj:LennardJones,epsilon=0.0104,sigma=3.4,rc=8.0,ro=6.0,smooth=True"
    assert_keeps_contract(load_potential(spec), [lj_crystal(1), dimer(3.9)])


def test_answers_are_those_of_the_calculator_itself() -> None:
    frames = [metal(seed=1), metal(seed=2) * (2, 1, 1)]
    evaluation = evaluate(load_potential(EMT_SPEC), *frames)
    for frame in frames:
        frame.calc = EMT()
    assert evaluation.conservative is not None
    np.testing.assert_allclose(evaluation.energies, [frame.get_potential_energy() for frame in frames])
    np.testing.assert_allclose(
        evaluation.conservative.forces, np.concatenate([frame.get_forces() for frame in frames]), atol=1e-12
    )
    virials = [-frame.get_volume() * frame.get_stress(voigt=False) for frame in frames]
    assert evaluation.conservative.virials is not None
    np.testing.assert_allclose(evaluation.conservative.virials, virials, atol=1e-12)


def test_calculator_without_stress_has_no_virial_and_says_so() -> None:
    potential = AsePotential(Trap(), name="trap")
    assert not potential.capabilities.conservative_virial
    evaluation = evaluate(potential, metal(), metal(periodic=False))
    assert evaluation.conservative is not None
    assert evaluation.conservative.virials is None


def test_slab_without_volume_has_no_virial() -> None:
    slab = metal()
    slab.pbc = (True, True, False)
    slab.cell[2] = 0.0
    evaluation = evaluate(load_potential(EMT_SPEC), slab)
    assert evaluation.conservative is not None
    assert evaluation.conservative.virials is None


def test_energy_is_the_one_that_the_forces_belong_to() -> None:
    water = molecule("H2O")
    energy = 0.5 * 2.0 * float((water.positions**2).sum())
    smeared = evaluate(AsePotential(SmearedTrap(), name="trap"), water)
    assert float(smeared.energies[0]) == pytest.approx(energy, rel=1e-14)
    plain = evaluate(AsePotential(Trap(), name="trap"), water)
    assert float(plain.energies[0]) == pytest.approx(energy + 7.0, rel=1e-14)


def test_arguments_are_python_literals_where_they_can_be() -> None:
    seen: dict[str, Any] = {}

    class Recorder(Trap):
        def __init__(self, **arguments: Any) -> None:
            super().__init__()
            seen.update(arguments)

    globals()["Recorder"] = Recorder
    load_potential(f"ase:{__name__}:Recorder,a=1,b=-2.5e-3,c=True,d=None,e=some text,f=path/x.model,g='7'")
    assert seen == {
        "a": 1, "b": -2.5e-3, "c": True, "d": None, "e": "some text", "f": "path/x.model", "g": "7"
    }  # fmt: skip
    assert type(seen["a"]) is int
    assert seen["c"] is True
    seen.clear()
    load_potential(
        f"ase:{__name__}:Recorder,c=true,model=m.pt,h=false,i=(2,2,2),j={{'a': [1, 2]}},k='x,y',l=O'Neill"
    )
    assert seen == {
        "c": True, "model": "m.pt", "h": False, "i": (2, 2, 2), "j": {"a": [1, 2]}, "k": "x,y", "l": "O'Neill"
    }  # fmt: skip


def test_an_energy_in_an_array_is_a_number() -> None:
    class Boxed(Trap):
        def calculate(self, *arguments: Any, **keywords: Any) -> None:
            super().calculate(*arguments, **keywords)
            self.results["energy"] = np.array([self.results["energy"]])

    water = molecule("H2O")
    boxed, plain = (evaluate(AsePotential(each(), name="trap"), water) for each in (Boxed, Trap))
    assert float(boxed.energies[0]) == float(plain.energies[0])


def test_direct_forces_are_refused() -> None:
    potential = load_potential(EMT_SPEC)
    assert not potential.capabilities.direct
    with pytest.raises(ModelError, match=r"EMT .* has conservative ones only"):
        evaluate(potential, metal(), want=frozenset({DIRECT}))


def test_energy_alone_can_be_asked_for() -> None:
    evaluation = evaluate(load_potential(EMT_SPEC), metal(), want=frozenset())
    assert evaluation.conservative is None
    assert evaluation.energies.shape == (1,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ase", "no calculator given"),
        ("ase:ase.calculators.emt", "is not MODULE:CLASS"),
        ("ase:ase.calculators.emtt:EMT", "cannot import 'ase.calculators.emtt'"),
        ("ase:no_such_package:EMT", "cannot import 'no_such_package'"),
        ("ase:ase.calculators.emt:EMTT", "has no 'EMTT'"),
        ("ase:collections:OrderedDict", "is not an ASE calculator"),
        ("ase:ase.calculators.emt:EMT,5", "two words stand without a key, 'ase.calculators.emt:EMT' and '5'"),
        ("ase:./mycalc.py:Base", "is not MODULE:CLASS"),
        ("ase::EMT", "is not MODULE:CLASS"),
        ("ase:no_such_package:EMT", "set PYTHONPATH to its folder"),
        ("ase:fractions:Fraction,numerator=1,denominator=0", "refused its arguments.*ZeroDivisionError"),
        (f"ase:{__name__}:ForcelessTrap", "must give energy and forces, it gives: energy"),
    ],
)
def test_impossible_calculators_are_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        load_potential(spec)
    assert "\n" not in str(raised.value)


def test_single_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="calculators work in float64"):
        load_potential(EMT_SPEC, dtype="float32")


def test_failure_of_the_calculator_is_told_in_one_line() -> None:
    with pytest.raises(
        ModelError, match="trap failed: RuntimeError: the density does not converge"
    ) as raised:
        evaluate(AsePotential(Trap(fault="convergence"), name="trap"), metal())
    assert "\n" not in str(raised.value)


def test_exhausted_memory_goes_through() -> None:
    with pytest.raises(MemoryError):
        evaluate(AsePotential(Trap(fault="memory"), name="trap"), metal())
