"""Metatomic models: against closed forms, against the contract, and against i-PI's own driver."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms

pytest.importorskip("metatomic.torch")

from metatomic.torch import ModelOutput

from forceserver.errors import ModelError, UsageError
from forceserver.potentials import load_potential
from forceserver.potentials.contract import Tolerances, assert_keeps_contract
from forceserver.potentials.interface import Batch, Evaluation, Potential
from forceserver.potentials.metatomic_outputs import choose_outputs
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind, Structure
from model_factory import (
    CHEMICAL,
    DIRECT_FORCE,
    DIRECT_STRESS,
    METRIC,
    BrokenModel,
    ClosedForm,
    DemandingModel,
    Recipe,
    Term,
    closed_form,
    save_module,
)
from systems import structure, water_box

BOTH = frozenset({CONSERVATIVE, DIRECT})
# Random weights make steep functions, for which the step of a finite difference must be small.
STEEP = Tolerances(equality=1e-8, difference=1e-5, step=1e-5)
# TorchScript takes long to specialise its code.
SLOW_SOAP = pytest.param("soap_bpnn", marks=pytest.mark.slow)
PairModel = Callable[[Recipe], Path]
MetatrainModel = Callable[..., Path]

NO_STRESS = (("energy", 1.0), (DIRECT_FORCE, 1.0))
RECIPES = {
    "full list": Recipe(),
    "half list": Recipe(terms=(Term(full=False),)),
    "list that may hold more": Recipe(terms=(Term(strict=False),)),
    "two lists": Recipe(terms=(Term(), Term(cutoff=2.5, full=False, amplitude=-0.2))),
    "cutoff beyond the cell": Recipe(terms=(Term(cutoff=7.5),)),
    "energy per atom": Recipe(energy_per_atom=True),
    "samples in reverse": Recipe(reverse_samples=True),
    "nm and meV": Recipe(units=METRIC),
    "kcal/mol": Recipe(units=CHEMICAL),
    "older names": Recipe(outputs=(("energy", 1.0), ("non_conservative_forces", 1.0), (DIRECT_STRESS, 1.0))),
    "float32": Recipe(dtype="float32"),
}


def triclinic_water() -> Structure:
    box = water_box(2, seed=3)
    shear = np.eye(3) + np.array([[0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [-0.1, 0.2, 0.0]])
    return structure(box.atomic_numbers.tolist(), box.positions @ shear, box.cell @ shear)


def evaluate(potential: Potential, *structures: Structure, want: frozenset[ForceKind] = BOTH) -> Evaluation:
    capabilities = potential.capabilities
    batch = Batch.from_structures(structures, dtype=capabilities.dtype, device=capabilities.device)
    return potential(batch, want)


def assert_equals_closed_form(
    evaluation: Evaluation, expected: list[ClosedForm], *, tolerance: float
) -> None:
    def compare(got: torch.Tensor, wanted: list[object]) -> None:
        np.testing.assert_allclose(got.numpy(), np.asarray(wanted), rtol=tolerance, atol=20 * tolerance)

    assert evaluation.conservative is not None
    assert evaluation.conservative.virials is not None
    compare(evaluation.energies, [each.energy for each in expected])
    compare(evaluation.conservative.forces, [row for each in expected for row in each.forces])
    compare(evaluation.conservative.virials, [each.virial for each in expected])
    assert evaluation.direct is not None
    compare(evaluation.direct.forces, [row for each in expected for row in each.direct_forces])
    if evaluation.direct.virials is not None:
        compare(evaluation.direct.virials, [each.direct_virial for each in expected])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_energy_forces_and_virials_equal_the_closed_form(pair_model: PairModel, recipe: Recipe) -> None:
    structures = [water_box(4), triclinic_water(), water_box(1, edge=3.0)]
    evaluation = evaluate(load_potential(str(pair_model(recipe))), *structures)
    assert evaluation.direct is not None
    assert evaluation.direct.virials is not None
    tolerance = 1e-12 if recipe.dtype == "float64" else 3e-6
    expected = [closed_form(each, recipe.terms) for each in structures]
    assert_equals_closed_form(evaluation, expected, tolerance=tolerance)


@pytest.mark.parametrize("periodic", [(False, False, False), (True, True, False), (False, False, True)])
def test_partly_periodic_structures_equal_the_closed_form(
    pair_model: PairModel, periodic: tuple[bool, bool, bool]
) -> None:
    box = water_box(4)
    pbc = np.array(periodic)
    # i-PI sends a cell whether or not the structure is periodic.
    part = Structure(box.atomic_numbers, box.positions, box.cell, pbc)
    potential = load_potential(str(pair_model(Recipe())))
    evaluation = evaluate(potential, part)
    bare = Structure(box.atomic_numbers, box.positions, box.cell * pbc[:, None], pbc)
    assert_equals_closed_form(evaluation, [closed_form(bare)], tolerance=1e-12)
    assert evaluation.direct is not None
    assert evaluation.direct.virials is None  # no volume, so no stress
    assert potential.capabilities.direct_virial_wants_volume


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(dtype="float32"), Recipe(outputs=NO_STRESS)])
def test_pair_model_keeps_the_contract(pair_model: PairModel, recipe: Recipe) -> None:
    structures = [water_box(4), triclinic_water()]
    assert_keeps_contract(load_potential(str(pair_model(recipe))), structures)


@pytest.mark.parametrize("architecture", ["pet", "soap_bpnn"])
def test_metatrain_model_keeps_the_contract(metatrain_model: MetatrainModel, architecture: str) -> None:
    pytest.importorskip("spex" if architecture == "soap_bpnn" else "metatrain")
    potential = load_potential(str(metatrain_model(architecture)))
    assert potential.capabilities.direct_virial
    assert_keeps_contract(potential, [triclinic_water(), water_box(1, edge=4.0)], tolerances=STEEP)


@pytest.mark.parametrize("kind", [CONSERVATIVE, DIRECT])
@pytest.mark.parametrize("model", ["pair", "pet", SLOW_SOAP])
def test_agrees_with_the_driver_of_ipi(
    pair_model: PairModel, metatrain_model: MetatrainModel, tmp_path: Path, model: str, kind: ForceKind
) -> None:
    from ipi.pes.metatomic import MetatomicDriver
    from ipi.utils.units import unit_to_internal, unit_to_user

    pytest.importorskip("spex" if model == "soap_bpnn" else "metatrain")
    path = pair_model(Recipe()) if model == "pair" else metatrain_model(model)
    boxes = [water_box(4, seed=seed) for seed in range(3)]
    template = tmp_path / "template.xyz"
    ase.io.write(template, Atoms(boxes[0].atomic_numbers, boxes[0].positions, cell=boxes[0].cell, pbc=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the driver asks for outputs by their older names
        driver = MetatomicDriver(str(template), str(path), non_conservative=kind == DIRECT)
        cells = [unit_to_internal("length", "angstrom", box.cell.T) for box in boxes]
        positions = [unit_to_internal("length", "angstrom", box.positions) for box in boxes]
        theirs = driver.compute(cells, positions)

    evaluation = evaluate(load_potential(str(path)), *boxes)
    ours = evaluation.direct if kind == DIRECT else evaluation.conservative
    assert ours is not None
    assert ours.virials is not None
    for i, (energy, forces, virial, _) in enumerate(theirs):
        our_forces = ours.forces.numpy().reshape(len(boxes), -1, 3)[i]
        if kind == DIRECT:
            our_forces = our_forces - our_forces.mean(axis=0)  # as the driver does
        their_forces = unit_to_user("force", "ev/ang", forces)
        their_virial = unit_to_user("energy", "electronvolt", virial)
        assert float(evaluation.energies[i]) == pytest.approx(
            unit_to_user("energy", "electronvolt", energy), rel=1e-9
        )
        np.testing.assert_allclose(our_forces, their_forces, rtol=0, atol=1e-9 * np.abs(their_forces).max())
        np.testing.assert_allclose(
            ours.virials[i].numpy(), their_virial, rtol=0, atol=1e-9 * np.abs(their_virial).max()
        )


def test_both_kinds_come_from_one_forward_pass(pair_model: PairModel) -> None:
    potential = load_potential(str(pair_model(Recipe())))
    with torch.profiler.profile() as profile:
        evaluate(potential, water_box(4), water_box(2), want=BOTH)
    passes = [event for event in profile.events() if event.name == "Model::forward"]
    assert len(passes) == 1


@pytest.mark.parametrize(
    ("recipe", "is_needed"),
    [
        ("full list", False),
        ("older names", False),
        ("float32", False),
        ("nm and meV", True),
        ("kcal/mol", True),
    ],
)
def test_the_wrapper_that_converts_units_is_called_only_where_they_differ(
    pair_model: PairModel, recipe: str, is_needed: bool
) -> None:
    """With `check=true` it is always called, and gives the same to the last bit."""
    path, boxes = pair_model(RECIPES[recipe]), (water_box(4), water_box(2))
    for want in (BOTH, frozenset({CONSERVATIVE}), frozenset({DIRECT})):
        with torch.profiler.profile() as profile:
            found = evaluate(load_potential(str(path)), *boxes, want=want)
        called = {event.name for event in profile.events()}
        assert ("AtomisticModel::convert_units_input" in called) == is_needed
        checked = evaluate(load_potential(f"{path},check=true"), *boxes, want=want)
        torch.testing.assert_close(found.energies, checked.energies, rtol=0, atol=0)
        for ours, theirs in (
            (found.conservative, checked.conservative),
            (found.direct, checked.direct),
        ):
            if ours is None or theirs is None:
                assert ours is theirs
                continue
            torch.testing.assert_close(ours.forces, theirs.forces, rtol=0, atol=0)
            torch.testing.assert_close(ours.virials, theirs.virials, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "builds_graph"), [(DIRECT, False), (CONSERVATIVE, True)])
def test_direct_forces_alone_build_no_graph(
    pair_model: PairModel, kind: ForceKind, builds_graph: bool
) -> None:
    potential = load_potential(str(pair_model(Recipe())))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda x: x):
        evaluate(potential, water_box(4), want=frozenset({kind}))
    assert bool(saved) == builds_graph


def test_conservative_forces_follow_direct_ones_asked_under_inference_mode(pair_model: PairModel) -> None:
    potential = load_potential(str(pair_model(Recipe())))
    with torch.inference_mode():
        evaluate(potential, water_box(4), want=frozenset({DIRECT}))
    evaluation = evaluate(potential, water_box(4))
    assert_equals_closed_form(evaluation, [closed_form(water_box(4))], tolerance=1e-12)


def test_kept_neighbor_lists_change_nothing_along_a_walk(pair_model: PairModel) -> None:
    path = pair_model(Recipe())
    kept, fresh = load_potential(str(path)), load_potential(f"{path},skin=0")
    rng = np.random.default_rng(1)
    box = water_box(8)
    positions = box.positions
    for _ in range(30):
        positions = positions + 0.05 * rng.standard_normal(positions.shape)
        moved = Structure(box.atomic_numbers, positions, box.cell, box.pbc)
        ours, wanted = evaluate(kept, moved), evaluate(fresh, moved)
        assert ours.conservative is not None
        assert wanted.conservative is not None
        torch.testing.assert_close(ours.energies, wanted.energies, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.conservative.forces, wanted.conservative.forces, rtol=0, atol=1e-12)
    assert kept.neighbor_statistics.reuses > kept.neighbor_statistics.builds  # type: ignore[attr-defined]
    assert fresh.neighbor_statistics.reuses == 0  # type: ignore[attr-defined]


VARIANTS = (
    ("energy/pbe", 1.0),
    ("energy/r2scan", 2.0),
    (f"{DIRECT_FORCE}/pbe", 3.0),
    (f"{DIRECT_FORCE}/r2scan", 4.0),
    (f"{DIRECT_STRESS}/r2scan", 5.0),
)


@pytest.mark.parametrize(
    ("options", "energy", "direct", "direct_virial"),
    [
        ("variant=pbe", 1.0, 3.0, None),
        ("variant=r2scan", 2.0, 4.0, 5.0),
        ("variant=pbe,direct_variant=r2scan", 1.0, 4.0, 5.0),
    ],
)
def test_variants_are_those_that_were_chosen(
    pair_model: PairModel, options: str, energy: float, direct: float, direct_virial: float | None
) -> None:
    evaluation = evaluate(load_potential(f"{pair_model(Recipe(outputs=VARIANTS))},{options}"), water_box(4))
    expected = closed_form(water_box(4))
    assert float(evaluation.energies[0]) == pytest.approx(energy * expected.energy, rel=1e-12)
    assert evaluation.direct is not None
    np.testing.assert_allclose(evaluation.direct.forces, direct * expected.direct_forces, atol=1e-12)
    if direct_virial is None:
        assert evaluation.direct.virials is None
    else:
        assert evaluation.direct.virials is not None
        np.testing.assert_allclose(
            evaluation.direct.virials[0], direct_virial * expected.direct_virial, atol=1e-12
        )


@pytest.mark.parametrize(
    ("available", "variant", "direct_variant", "chosen"),
    [
        (["energy", "energy/b", DIRECT_FORCE], None, None, ("energy", DIRECT_FORCE, None)),
        (["energy/b", f"{DIRECT_FORCE}/b"], None, None, ("energy/b", f"{DIRECT_FORCE}/b", None)),
        (["energy/b", DIRECT_FORCE], None, None, ("energy/b", None, None)),
        (["energy", f"{DIRECT_FORCE}/b"], None, "b", ("energy", f"{DIRECT_FORCE}/b", None)),
        (["energy", DIRECT_STRESS], None, None, ("energy", None, None)),
        (["energy", "energy_uncertainty"], None, None, ("energy", None, None)),
    ],
)
def test_direct_outputs_of_another_variant_are_never_taken_quietly(
    available: list[str],
    variant: str | None,
    direct_variant: str | None,
    chosen: tuple[str, str | None, str | None],
) -> None:
    names = choose_outputs(available, variant, direct_variant)
    assert (names.energy, names.direct_force, names.direct_stress) == chosen


def test_model_without_direct_stress_has_no_direct_virial(pair_model: PairModel) -> None:
    potential = load_potential(str(pair_model(Recipe(outputs=NO_STRESS))))
    assert (potential.capabilities.direct, potential.capabilities.direct_virial) == (True, False)
    evaluation = evaluate(potential, water_box(4))
    assert evaluation.direct is not None
    assert evaluation.direct.virials is None


def test_model_without_direct_head_says_so(pair_model: PairModel) -> None:
    potential = load_potential(str(pair_model(Recipe(outputs=(("energy", 1.0),)))))
    assert not potential.capabilities.direct
    with pytest.raises(ModelError, match=r"has none that go with its output 'energy'.*Remedy"):
        evaluate(potential, water_box(4), want=frozenset({DIRECT}))


def test_capabilities_are_those_of_the_model(pair_model: PairModel) -> None:
    capabilities = load_potential(str(pair_model(Recipe(units=METRIC, dtype="float32")))).capabilities
    assert capabilities.elements == {1, 8}
    assert capabilities.cutoff == pytest.approx(4.0)  # A, declared in nm
    assert capabilities.dtype == torch.float32
    assert capabilities.device == torch.device("cpu")
    assert (capabilities.conservative, capabilities.direct, capabilities.direct_virial) == (True, True, True)


def test_float32_model_runs_in_float64_with_its_own_weights(pair_model: PairModel) -> None:
    wide = load_potential(str(pair_model(Recipe(dtype="float32"))), dtype="float64")
    evaluation = evaluate(wide, water_box(4))
    assert evaluation.energies.dtype == torch.float64
    # The energy holds no weight; the axis of the direct head was rounded to float32 when it was exported.
    expected = closed_form(water_box(4))
    assert float(evaluation.energies[0]) == pytest.approx(expected.energy, rel=1e-12)
    assert evaluation.direct is not None
    error = np.abs(evaluation.direct.forces.numpy() - expected.direct_forces).max()
    assert 1e-10 < error < 1e-6


@pytest.mark.parametrize("architecture", ["pet", SLOW_SOAP])
def test_float32_metatrain_model_runs_in_float64(metatrain_model: MetatrainModel, architecture: str) -> None:
    pytest.importorskip("spex" if architecture == "soap_bpnn" else "metatrain")
    path = str(metatrain_model(architecture, "float32"))
    wide, narrow = load_potential(path, dtype="float64"), load_potential(path)
    box = triclinic_water()
    ours, theirs = evaluate(wide, box), evaluate(narrow, box)
    torch.testing.assert_close(ours.energies.float(), theirs.energies, rtol=1e-5, atol=1e-5)
    assert ours.conservative is not None
    # A finite difference this fine is lost in the rounding of float32.
    direction, step = np.random.default_rng(0).standard_normal(box.positions.shape), 1e-6
    moved = [
        Structure(box.atomic_numbers, box.positions + sign * step * direction, box.cell, box.pbc)
        for sign in (1, -1)
    ]
    forward, backward = evaluate(wide, *moved, want=frozenset({CONSERVATIVE})).energies.tolist()
    power = float((ours.conservative.forces.numpy() * direction).sum())
    assert (backward - forward) / (2 * step) == pytest.approx(power, rel=1e-6)


def write_text_file(folder: Path) -> Path:
    path = folder / "text.pt"
    path.write_text("not a model\n")
    return path


def write_other_script(folder: Path) -> Path:
    path = folder / "script.pt"
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "absent.pt", "no model file"),
        (lambda folder: folder, "no model file"),
        (write_text_file, "not a file that metatomic can load"),
        (write_other_script, "not a file that metatomic can load"),
    ],
)
def test_file_that_is_no_model_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        load_potential(f"metatomic:{make(tmp_path)}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("varaint=pbe", "did you mean 'variant'"),
        ("variant=pbe0", "no output 'energy/pbe0'.*energy/pbe, energy/r2scan"),
        ("variant=pbe,direct_variant=b3lyp", f"no output '{DIRECT_FORCE}/b3lyp'.*{DIRECT_FORCE}/pbe"),
        ("check=maybe", "must be true or false"),
        ("skin=-1", "must not be negative"),
        ("skin=wide", "must be a finite number"),
        ("extensions=absent", "no directory"),
        ("variant=pbe,check=perhaps", "must be true or false"),
    ],
)
def test_impossible_options_are_refused(pair_model: PairModel, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_potential(f"{pair_model(Recipe(outputs=VARIANTS))},{options}")


def test_several_energies_without_a_choice_are_refused_by_name(pair_model: PairModel) -> None:
    with pytest.raises(UsageError, match=r"energy/pbe, energy/r2scan.*variant=pbe"):
        load_potential(str(pair_model(Recipe(outputs=VARIANTS))))


def test_narrower_dtype_than_the_model_is_refused(pair_model: PairModel) -> None:
    with pytest.raises(UsageError, match="exported in float64 and cannot run in float32"):
        load_potential(str(pair_model(Recipe())), dtype="float32")


def test_device_that_the_model_was_not_exported_for_is_refused(pair_model: PairModel) -> None:
    with pytest.raises(UsageError, match=r"exported for cuda and cannot run on cpu.*--device cuda"):
        load_potential(str(pair_model(Recipe(devices=("cuda",)))))


def test_checking_by_metatomic_can_be_asked_for(pair_model: PairModel) -> None:
    potential = load_potential(f"{pair_model(Recipe())},check=true")
    assert_equals_closed_form(evaluate(potential, water_box(4)), [closed_form(water_box(4))], tolerance=1e-12)
    # Energies per atom where one per structure was asked for is what such a check is there to find.
    with pytest.raises(ModelError, match="pair model"):
        evaluate(load_potential(f"{pair_model(Recipe(energy_per_atom=True))},check=true"), water_box(4))


def test_unknown_element_is_named(pair_model: PairModel) -> None:
    box = water_box(2)
    numbers = box.atomic_numbers.copy()
    numbers[0] = 6
    methane_like = Structure(numbers, box.positions, box.cell, box.pbc)
    with pytest.raises(ModelError, match="knows H, O, but the structure holds C"):
        evaluate(load_potential(str(pair_model(Recipe()))), methane_like)


def test_positions_that_are_not_finite_are_refused(pair_model: PairModel) -> None:
    box = water_box(2)
    positions = box.positions.copy()
    positions[3, 1] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        evaluate(
            load_potential(str(pair_model(Recipe()))),
            Structure(box.atomic_numbers, positions, box.cell, box.pbc),
        )


def load_broken(module: torch.nn.Module, folder: Path) -> Potential:
    outputs = {"energy": ModelOutput(unit="eV", sample_kind="system")}
    return load_potential(str(save_module(module, folder / "broken.pt", outputs=outputs)))


@pytest.mark.parametrize("kind", [CONSERVATIVE, DIRECT])
def test_exhausted_memory_inside_torchscript_is_seen_as_such(tmp_path: Path, kind: ForceKind) -> None:
    outputs = {"energy": ModelOutput(unit="eV"), DIRECT_FORCE: ModelOutput(unit="eV/A", sample_kind="atom")}
    path = save_module(BrokenModel("memory"), tmp_path / "greedy.pt", outputs=outputs)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(load_potential(str(path)), water_box(1), want=frozenset({kind}))


def test_failure_inside_the_model_is_told_in_one_line(tmp_path: Path) -> None:
    potential = load_broken(BrokenModel("sense"), tmp_path)
    with pytest.raises(ModelError, match=r"pair model .* failed: .*size of tensor") as raised:
        evaluate(potential, water_box(1), want=frozenset({CONSERVATIVE}))
    assert "\n" not in str(raised.value)


def test_model_that_wants_more_than_ipi_sends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="wants inputs beyond positions, cell and elements: charge"):
        load_broken(DemandingModel("sense"), tmp_path)


def test_model_without_energy_is_refused(pair_model: PairModel) -> None:
    with pytest.raises(ModelError, match=f"no output 'energy'.*{DIRECT_FORCE}"):
        load_potential(str(pair_model(Recipe(outputs=((DIRECT_FORCE, 1.0),)))))
