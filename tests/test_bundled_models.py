"""Models that come with the package: found by name, complete, refused in one line where something is missing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from forceserver.commands.models import SCHEMES
from forceserver.errors import UsageError
from forceserver.evaluate import Evaluator
from forceserver.models import BUNDLED, BundledModel
from forceserver.potentials import LOADERS, load_potential, require
from forceserver.potentials.interface import Batch
from forceserver.potentials.specification import POSITIONAL, anchored, parse
from forceserver.structures import CONSERVATIVE, DEFAULT_MODEL, DIRECT, ForceRole
from ipi_inputs import load
from real_ipi import WATER64, served, workplace
from systems import water64

LARGEST_FILE = 4e6  # bytes


def test_water_pet_gives_both_kinds_of_forces_with_their_stresses() -> None:
    pytest.importorskip("metatomic.torch")
    known = load_potential("water-pet").capabilities
    assert known.conservative
    assert known.direct
    assert known.direct_virial
    assert known.elements == {1, 8}
    assert known.cutoff is not None
    assert known.cutoff <= 4.5


def test_water_pet_has_learnt_its_direct_stress() -> None:
    """Against what its energy says, over boxes whose stress differs by many times what is allowed."""
    pytest.importorskip("metatomic.torch")
    boxes = []
    for strain in (-0.03, -0.015, 0.0, 0.015, 0.03):  # along x
        stretch = np.diag([1.0 + strain, 1.0, 1.0])
        box = water64()
        boxes.append(replace(box, positions=box.positions @ stretch, cell=box.cell @ stretch))
    potential = load_potential("water-pet")
    batch = Batch.from_structures(boxes, dtype=torch.float32, device=torch.device("cpu"))
    found = potential(batch, frozenset({CONSERVATIVE, DIRECT}))
    assert found.conservative is not None
    assert found.direct is not None
    volumes = np.array([abs(np.linalg.det(box.cell)) for box in boxes])[:, None, None]
    own, direct = (1e3 * forces.virials.numpy() / volumes for forces in (found.conservative, found.direct))
    assert np.ptp(own[:, 0, 0]) > 10.0  # meV/A^3
    np.testing.assert_allclose(direct, own, atol=2.5)


@pytest.mark.parametrize("molecule", [0, 21, 42, 63])
def test_water_pet_pulls_back_bonds_that_only_the_beads_of_long_runs_reach(molecule: int) -> None:
    """Weights that had seen no bond beyond 1.27 A pushed H away from there by 15 eV/A, and ring polymers lost their molecules."""
    pytest.importorskip("metatomic.torch")
    box, oxygen, hydrogen = water64(), 3 * molecule, 3 * molecule + 1
    bond = box.positions[hydrogen] - box.positions[oxygen]
    along = bond / np.linalg.norm(bond)
    lengths = np.array([0.75, 0.8, 0.85, 0.9, 1.05, 1.1, 1.2, 1.25, 1.3, 1.35, 1.4])
    pulled = []
    for length in lengths:
        positions = box.positions.copy()
        positions[hydrogen] = positions[oxygen] + length * along
        pulled.append(replace(box, positions=positions))
    batch = Batch.from_structures(pulled, dtype=torch.float32, device=torch.device("cpu"))
    want = frozenset({CONSERVATIVE, DIRECT})
    found, truth = load_potential("water-pet")(batch, want), load_potential("qtip4pf")
    exact = truth(
        replace(batch, positions=batch.positions.double(), cells=batch.cells.double()), want - {DIRECT}
    )
    assert found.conservative is not None
    assert found.direct is not None
    assert exact.conservative is not None
    true, conservative, direct = (
        given.forces.numpy().reshape(len(lengths), -1, 3)[:, hydrogen] @ along
        for given in (exact.conservative, found.conservative, found.direct)
    )
    np.testing.assert_array_equal(np.sign(conservative), np.sign(true))
    np.testing.assert_array_equal(np.sign(direct), np.sign(true))
    np.testing.assert_allclose(conservative, true, atol=1.0, rtol=0.2)
    np.testing.assert_allclose(direct, true, atol=1.0, rtol=0.2)


@pytest.mark.parametrize("model", BUNDLED.values(), ids=BUNDLED)
def test_a_bundled_model_is_small_and_has_its_card(model: BundledModel) -> None:
    assert model.find().stat().st_size <= LARGEST_FILE
    assert (model.folder / "README.md").stat().st_size > 500


def test_water_pet_serves_real_ipi_by_its_name() -> None:
    pytest.importorskip("metatomic.torch")
    with workplace() as place:
        load("nve-mts").with_(steps=3, mts=2).write(place.path / "input.xml")
        ipi = place.start("i-pi", "-S", f"{place.path}/s_", "input.xml", log="ipi.log")
        server = place.start(
            "forceserver", "run", "water-pet", "-i", "input.xml", "-S", f"{place.path}/s_", log="server.log"
        )
        assert server.wait(120) == 0, place.read("server.log")
        assert ipi.wait(60) == 0, place.read("ipi.log")
        assert served(place.read("server.log"))[0].startswith("4 conservative")


@pytest.mark.parametrize(("shift", "is_slab"), [(0.3, False), (1e5, False), (0.3, True)])
def test_single_precision_loses_nothing_on_atoms_that_have_wandered_off(shift: float, is_slab: bool) -> None:
    """i-PI does not always wrap, and far from the origin float32 has no digits left for the place in the cell."""
    box, random = water64(), np.random.default_rng(3)
    box = replace(box, pbc=np.array([True, True, not is_slab]))
    laps = random.integers(-1000, 1000, box.positions.shape) * box.pbc
    away = replace(box, positions=box.positions + laps @ box.cell + shift)
    evaluator = Evaluator({DEFAULT_MODEL: load_potential("water-pet")})
    here, there = (evaluator.evaluate([(each, ForceRole(1.0))])[0] for each in (box, away))
    np.testing.assert_allclose(there.forces, here.forces, atol=1e-3)


def test_a_bundled_name_takes_options_but_no_other_file() -> None:
    here = BundledModel("water-pet", "metatomic", "a file that is there", file_name="make_dataset.py")
    assert parse("house,variant=pbe", schemes=LOADERS, bundled={"house": here}) == (
        "metatomic",
        {POSITIONAL: str(here.find()), "variant": "pbe"},
    )
    with pytest.raises(UsageError, match=r"'other.pt' is not KEY=VALUE"):
        parse("house,other.pt", schemes=LOADERS, bundled={"house": here})


def test_a_lost_file_is_named_with_its_remedy() -> None:
    lost = BundledModel("house", "metatomic", "a file that is not there", file_name="lost.pt")
    with pytest.raises(UsageError, match=r"house/lost.pt, and is not.*install forceserver again"):
        parse("house", schemes=LOADERS, bundled={"house": lost})


@pytest.mark.parametrize("word", ["water-pett", "waterpet", "water-pet:variant=x"])
def test_a_misspelt_name_is_recognised(word: str) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'water-pet'"):
        require(word)


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forceserver.potentials.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'extra \'metatomic\'.*pip install "forceserver\[metatomic\]"'):
        require("some.pt")
    require("qtip4pf")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("not-yet.pt,variant=a", f"{WATER64.parent}/not-yet.pt,variant=a"),
        ("metatomic:water64.xyz", f"metatomic:{WATER64}"),
        ("model.pt,extensions=compiled", f"{WATER64.parent}/model.pt,extensions={WATER64.parent}/compiled"),
        ("ase:my.module:Class,file=water64.xyz,charge=0.5", f"ase:my.module:Class,file={WATER64},charge=0.5"),
        (
            "ase:my.module:Class,name=no-such.xyz,device=cpu",
            "ase:my.module:Class,name=no-such.xyz,device=cpu",
        ),
        ("ase:my.module:Class,file='water64.xyz'", f"ase:my.module:Class,file='{WATER64}'"),
        (
            "ase:my.module:Class,files=['water64.xyz','no.xyz'],name=\"nve\"",
            f"ase:my.module:Class,files=['{WATER64}','no.xyz'],name=\"nve\"",
        ),
        ("ase:my.module:Class,file=~/water64.xyz", f"ase:my.module:Class,file={WATER64}"),
        ("ase:my.module:Class,file='~/water64.xyz'", f"ase:my.module:Class,file='{WATER64}'"),
        ("ase:my.module:Class,file=~nobody-here/x.xyz", "ase:my.module:Class,file=~nobody-here/x.xyz"),
        ("metatomic:~/model.pt", f"metatomic:{WATER64.parent}/model.pt"),
        ("qtip4pf:direct=0.02", "qtip4pf:direct=0.02"),
        ("water-pet", "water-pet"),
    ],
)
def test_a_model_means_the_same_from_any_folder(
    spec: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(WATER64.parent)
    monkeypatch.setenv("HOME", str(WATER64.parent))
    assert anchored(spec) == expected


def test_models_lists_every_scheme_and_every_bundled_model_without_torch() -> None:
    assert set(SCHEMES) == set(LOADERS)
    code = (
        "import sys; sys.argv = ['forceserver', 'models']\n"
        "from forceserver.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    listed = {line.split()[0] for line in out.splitlines() if line}
    assert {written for written, _ in SCHEMES.values()} | set(BUNDLED) <= listed
    assert out.splitlines()[-1] == "False"


def test_models_says_what_is_not_installed(tmp_path: Path) -> None:
    code = (
        "import sys, forceserver.commands.models as models\n"
        "models.find_spec = lambda name: None\n"
        "models.models()"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    line = next(line for line in out.stdout.splitlines() if line.startswith("FILE.pt"))
    assert line.endswith('needs pip install "forceserver[metatomic]"')
