"""On a GPU, where there is one: the forces of the CPU, call after call, and a memory that is too small for a batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from forceserver.evaluate import Evaluator
from forceserver.potentials import load_potential
from forceserver.potentials.interface import BatchBuilder, Evaluation, Potential
from forceserver.structures import CONSERVATIVE, DIRECT, ForceKind, ForceRole, Structure
from real_ipi import Socket, served, workplace
from systems import lj_crystal, water64

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU here", allow_module_level=True)

BOTH = frozenset({CONSERVATIVE, DIRECT})
MODELS = ("water-pet", "qtip4pf", "qtip4pf:direct=0.05", "lj")


def boxes_for(model: str, n: int) -> list[Structure]:
    """Several, no two of them alike."""
    box = lj_crystal(3) if model.startswith("lj") else water64()
    return [box.displaced(0.05, np.random.default_rng(seed)) for seed in range(n)]


def evaluate(potential: Potential, boxes: list[Structure], want: frozenset[ForceKind]) -> Evaluation:
    able = potential.capabilities
    return potential(BatchBuilder(able.dtype, able.device).build(boxes), want)


def kinds_of(potential: Potential) -> frozenset[ForceKind]:
    return BOTH if potential.capabilities.direct else frozenset({CONSERVATIVE})


def assert_alike(found: Evaluation, wanted: Evaluation, dtype: torch.dtype) -> None:
    """To rounding: sums of many terms come in another order there."""
    tolerance = 1e-9 if dtype is torch.float64 else 2e-4
    for kind in ("conservative", "direct"):
        ours, theirs = getattr(found, kind), getattr(wanted, kind)
        assert (ours is None) == (theirs is None)
        if ours is None:
            continue
        assert ours.forces.is_cuda
        np.testing.assert_allclose(ours.forces.cpu(), theirs.forces, atol=tolerance)
        np.testing.assert_allclose(ours.virials.cpu(), theirs.virials, rtol=tolerance, atol=30 * tolerance)
    np.testing.assert_allclose(found.energies.cpu(), wanted.energies, rtol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_forces_are_those_of_the_cpu(model: str) -> None:
    """TorchScript specialises its code after some calls of each kind: so there are several."""
    boxes = boxes_for(model, 4)
    here, there = load_potential(model), load_potential(model, device="cuda")
    for want in sorted({frozenset({kind}) for kind in kinds_of(here)} | {kinds_of(here)}, key=sorted):
        for first in range(4):
            some = boxes[first:] + boxes[:first]
            if DIRECT in want and CONSERVATIVE not in want:
                some = some[:2]
            assert_alike(evaluate(there, some, want), evaluate(here, some, want), here.capabilities.dtype)


def test_no_batch_sees_the_positions_of_the_next() -> None:
    """Copies from pinned memory are under way while the next batch is made."""
    builder = BatchBuilder(torch.float32, torch.device("cuda"))
    boxes = [box for n in range(3) for box in boxes_for("water-pet", 20 + n)]
    busy = torch.ones(4096, 4096, device="cuda")
    for _ in range(20):  # the copies stand in line behind it
        busy = busy @ busy * 0.0
    batches = [builder.build([box]) for box in boxes]
    for box, batch in zip(boxes, batches, strict=True):
        np.testing.assert_array_equal(batch.positions.cpu(), box.positions.astype(np.float32))


@pytest.fixture
def small_memory() -> Iterator[None]:
    """What fits eight replicas of water64 and not sixty-four."""
    torch.cuda.empty_cache()
    evaluator = Evaluator({"default": load_potential("water-pet", device="cuda")}, fusion=False)
    for _ in range(3):
        evaluator.evaluate([(box, ForceRole(0.0)) for box in boxes_for("water-pet", 8)])
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(1.5 * torch.cuda.max_memory_reserved() / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("small_memory")
def test_a_batch_that_does_not_fit_is_halved_until_it_does(caplog: pytest.LogCaptureFixture) -> None:
    boxes = boxes_for("water-pet", 64)
    evaluator = Evaluator({"default": load_potential("water-pet", device="cuda")}, fusion=False)
    found = evaluator.evaluate([(box, ForceRole(0.0)) for box in boxes])
    assert evaluator.statistics.n_splits >= 1
    assert "out of memory with 64 structures" in caplog.text
    wanted = evaluate(load_potential("water-pet"), boxes[-3:], frozenset({CONSERVATIVE})).conservative
    assert wanted is not None
    forces = np.concatenate([result.forces for result in found[-3:]])
    np.testing.assert_allclose(forces, wanted.forces, atol=2e-4)
    n_before = evaluator.statistics.n_splits
    evaluator.evaluate([(box, ForceRole(0.0)) for box in boxes])
    assert evaluator.statistics.n_splits == n_before  # it has learnt what fits


def test_ipi_is_served_from_a_gpu() -> None:
    with workplace() as place:
        place.write_input(
            Socket("slow", "{forces: conservative}", mts_weights="[1, 0]"),
            Socket("fast", "{forces: direct}", mts_weights="[-1, 1]"),
            beads=4,
            mode="nve",
            dynamics="<nmts>[1,4]</nmts>",
            timestep=1.0,
        )
        log = place.run("water-pet", "-i", "input.xml", "--device", "cuda", seconds=240.0)
        assert "cuda" in log
        assert served(log)
        conserved = place.properties()[:, 1]
        assert np.ptp(conserved) < 0.5  # eV, of 768 atoms
