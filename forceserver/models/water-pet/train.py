"""Trains a PET with both heads: its direct forces first, then all energies, forces and stresses together, then the direct stress.

    mtt train options.yaml -o start       # builds the model: baseline of the energy, scales, heads
    python train.py start.ckpt direct.ckpt --stage direct --minutes 10 --learning-rate 2e-3 --data train-*.xyz
    python train.py direct.ckpt both.ckpt --stage both --agreement 4 --minutes 70 --learning-rate 1e-3 --data train-*.xyz
    python train.py both.ckpt all.ckpt --stage stress --minutes 10 --learning-rate 3e-3 --data train-1.xyz
    mtt export all.ckpt -o model.pt

and from a model that was exported before, whose weights are all that is left of it:

    python train.py start.ckpt both.ckpt --weights model.pt --stage both --agreement 4 --minutes 60 ...

Model, checkpoint and export are metatrain's; only the loop is here, because on two cores it matters how an hour is spent: one
frame per update, a schedule that ends when the time is over, averaged weights, and no validation between. The matrices are moved
by Muon (K. Jordan et al., 2024; scaled as by J. Liu et al., arXiv 2502.16982, so that it shares AdamW's learning rates), the rest
by AdamW: AdamW alone sat on a plateau for 3,000 updates where this leaves it within 1,000.

Loss, with f in eV/A, energies and virials per atom in eV:

    Huber(f_direct, 0.3) + Huber(f_conservative, 0.3) + 20 (E/N)^2 + 4 (virial_direct/N)^2 + 4 (virial_conservative/N)^2

The energy counts so little that forces learn first. `--agreement W` adds W Huber(f_direct - f_conservative, 0.3) to the stage of
both: multiple time stepping forgives what both kinds of forces have wrong together, and how large M may be depends on the rest.
The third stage, `stress`, is for the direct stress, of which a frame has nine numbers: too few to learn from. So the energy tells
each atom its own: with r_ij the vector of an edge of the graph and W_i = 1/2 sum_j (r_ij dE/dr_ij + r_ji dE/dr_ji), symmetrised,
which add up to the virial of the conservative stress. Only the heads of the direct stress move, on features that are settled
(1.7 MB for each frame of 96 atoms), so that everything else stays what it is. Its loss, in eV, with w_i what the head says of
an atom, is mean (w_i - W_i)^2 + mean (sum w_i - virial)^2 / N.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import ase.io
import metatrain.pet
import numpy as np
import torch
import vesin
from metatomic.torch import load_atomistic_model
from metatrain.pet.modules.utilities import cutoff_func_cosine
from torch import Tensor

FORCES, STRESS = "non_conservative_forces", "non_conservative_stress"
HUBER = 0.3  # eV/A
ENERGY_WEIGHT, VIRIAL_WEIGHT = 20.0, 4.0
LARGEST_GRADIENT = 1.0
SMALLEST_MATRIX = 16  # rows or columns; what is smaller is left to AdamW
WARM_UP = 100  # updates
AVERAGING = 0.999  # of the weights, an update

TINY = 1e-15  # A^2, of metatrain, below the root of a distance

Stage = Literal["direct", "both", "stress"]
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Frame:
    """One labelled configuration; eV and A, stress in eV/A^3 with ASE's sign."""

    positions: Tensor
    cell: Tensor
    numbers: Tensor
    pairs: Tensor  # (n_pairs, 2), each pair in both directions, sorted by centre
    shifts: Tensor  # (n_pairs, 3)
    energy: float
    forces: Tensor
    stress: Tensor

    @property
    def volume(self) -> Tensor:
        volume: Tensor = torch.linalg.det(self.cell).abs()
        return volume

    def turned(self, rotation: Tensor) -> Frame:
        """The same configuration, rotated or reflected."""
        return Frame(
            self.positions @ rotation.T, self.cell @ rotation.T, self.numbers, self.pairs, self.shifts,
            self.energy, self.forces @ rotation.T, rotation @ self.stress @ rotation.T,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Prediction:
    direct_forces: Tensor
    energy: Tensor | None = None
    conservative_forces: Tensor | None = None
    direct_stress: Tensor | None = None
    conservative_stress: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Settled:
    """A frame with what no longer moves once all but the heads of the direct stress is learnt."""

    frame: Frame
    features: tuple[list[Tensor], list[Tensor]]  # of nodes and of edges, by layer
    inputs: dict[str, Tensor]
    virials: Tensor  # (n_atoms, 3, 3) eV: the share of each atom in the virial, as the energy says


def read_frames(path: Path, cutoff: float) -> list[Frame]:
    neighbors = vesin.NeighborList(cutoff=cutoff, full_list=True)
    frames = []
    for atoms in ase.io.read(path, ":"):
        first, second, shifts = neighbors.compute(atoms.positions, atoms.cell.array, True, "ijS")
        order = np.argsort(first, kind="stable")
        frames.append(
            Frame(
                positions=torch.tensor(atoms.positions, dtype=torch.float32),
                cell=torch.tensor(atoms.cell.array, dtype=torch.float32),
                numbers=torch.tensor(atoms.numbers),
                pairs=torch.tensor(np.stack([first, second], axis=1)[order].astype(np.int64)),
                shifts=torch.tensor(shifts[order].astype(np.int64)),
                energy=float(atoms.info["energy_label"]),
                forces=torch.tensor(atoms.arrays["forces_label"], dtype=torch.float32),
                stress=torch.tensor(np.asarray(atoms.info["stress_label"]), dtype=torch.float32),
            )
        )
    return frames


class Learner:
    """A metatrain PET with the scales of its targets in plain tensors, and the average of its weights over time."""

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self._checkpoint = checkpoint
        self.model = metatrain.pet.__model__.load_checkpoint(checkpoint, context="restart").to(torch.float32)
        self.backend = self.model.backend
        self.parameters = list(self.backend.parameters())
        self._averages = [parameter.detach().clone() for parameter in self.parameters]
        self._n_averaged = 0
        scales = self.model.scaler.model.per_target_scales
        self._scales = {name: scales[name][0].values.flatten().float() for name in ("energy", FORCES, STRESS)}
        baseline = self.model.additive_models[0].model
        self._types = {
            number: index for index, number in enumerate(self.model.scaler.model.atomic_types.tolist())
        }
        self._baseline = dict(
            zip(
                baseline.atomic_types.tolist(),
                baseline.weights["energy"][0].values.flatten().tolist(),
                strict=True,
            )
        )

    @property
    def cutoff(self) -> float:
        cutoff: float = self.backend.cutoff
        return cutoff

    def baseline(self, frame: Frame) -> float:
        """eV: what the composition alone says about the energy."""
        return float(sum(self._baseline[int(number)] for number in frame.numbers))

    def predict(self, frame: Frame, *, both: bool) -> Prediction:
        """Direct forces alone, or everything; the energy without its baseline."""
        positions = frame.positions.clone().requires_grad_(both)
        strain = torch.zeros(3, 3, requires_grad=both)
        stretch = torch.eye(3) + 0.5 * (strain + strain.T)
        cells = frame.cell[None] @ stretch
        inputs, owner = self._inputs(positions @ stretch, cells, frame)
        wanted = ["energy", FORCES, STRESS] if both else [FORCES]
        outputs, _, _ = self.backend.predict(
            *self.backend.calculate_features(inputs), inputs, cells, owner, wanted
        )
        scale = self._scales[FORCES]
        per_atom = scale[[self._types[int(number)] for number in frame.numbers]] if len(scale) > 1 else scale
        direct = outputs[FORCES][0].reshape(-1, 3) * per_atom.reshape(-1, 1)
        if not both:
            return Prediction(direct)
        energy = outputs["energy"][0].sum() * self._scales["energy"][0]
        slope, strain_slope = torch.autograd.grad(
            energy, (positions, strain), create_graph=self.backend.training
        )
        return Prediction(
            direct_forces=direct,
            energy=energy,
            conservative_forces=-slope,
            direct_stress=outputs[STRESS][0].sum(dim=0).reshape(3, 3) * self._scales[STRESS][0],
            conservative_stress=strain_slope / frame.volume,
        )

    def _inputs(self, positions: Tensor, cells: Tensor, frame: Frame) -> tuple[dict[str, Tensor], Tensor]:
        """What the backend works on, and to which structure each atom belongs: to the only one."""
        owner = torch.zeros(len(frame.numbers), dtype=torch.int64)
        inputs = self.backend.preprocess(
            positions=positions,
            centers=frame.pairs[:, 0],
            neighbors=frame.pairs[:, 1],
            species=frame.numbers,
            cells=cells,
            cell_shifts=frame.shifts,
            system_indices=owner,
            cutoff_width_adaptive=1.0,
        )
        return inputs, owner

    def settle(self, frame: Frame) -> Settled:
        """Features, and each atom's share of the virial of the energy: half of every edge that it begins or ends.

        Edges are cut off by the cosine that options.yaml asks for.
        """
        inputs, owner = self._inputs(frame.positions, frame.cell[None], frame)
        edges = inputs["edge_vectors"].requires_grad_()
        distances = (edges.square().sum(dim=2) + TINY).sqrt()
        factors = cutoff_func_cosine(distances, self.backend.cutoff, self.backend.cutoff_width)
        inputs |= {"edge_distances": distances, "cutoff_factors": factors * inputs["padding_mask"]}
        features = self.backend.calculate_features(inputs)
        outputs, _, _ = self.backend.predict(*features, inputs, frame.cell[None], owner, ["energy"])
        (slopes,) = torch.autograd.grad(outputs["energy"][0].sum() * self._scales["energy"][0], edges)
        nodes, ends = inputs["centers"], inputs["neighbors"]
        real = nodes, inputs["nef_to_edges_neighbor"]  # the others fill up the table
        shares = 0.5 * edges.detach()[real][:, :, None] * slopes[real][:, None, :]
        virials = (
            torch.zeros(len(frame.numbers), 3, 3).index_add_(0, nodes, shares).index_add_(0, ends, shares)
        )
        return Settled(
            frame,
            ([each.detach() for each in features[0]], [each.detach() for each in features[1]]),
            {name: value.detach() for name, value in inputs.items()},
            0.5 * (virials + virials.transpose(1, 2)),
        )

    def predict_virials(self, settled: Settled) -> Tensor:
        """(n_atoms, 3, 3) eV: what the head of the direct stress says of each atom."""
        cells = settled.frame.cell[None]
        owner = torch.zeros(len(settled.frame.numbers), dtype=torch.int64)
        outputs, _, _ = self.backend.predict(*settled.features, settled.inputs, cells, owner, [STRESS])
        virials: Tensor = outputs[STRESS][0].reshape(-1, 3, 3) * self._scales[STRESS][0]
        return virials * settled.frame.volume

    def choose(self, stage: Stage) -> None:
        """Let the parameters of a stage move, and no others."""
        for name, parameter in self.backend.named_parameters():
            parameter.requires_grad_(stage != "stress" or STRESS in name)

    def take_weights(self, exported: Path) -> None:
        """Go on with the weights of a model that `mtt export` wrote, of the same architecture."""
        prefix = "module.backend."
        weights = {
            name.removeprefix(prefix): value
            for name, value in load_atomistic_model(exported).state_dict().items()
            if name.startswith(prefix)
        }
        self.backend.load_state_dict(weights)
        self._averages = [parameter.detach().clone() for parameter in self.parameters]

    def average(self) -> None:
        """Take the present weights into their running average."""
        self._n_averaged += 1
        keep = min(AVERAGING, self._n_averaged / (self._n_averaged + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self.parameters, 1.0 - keep)

    def save(self, path: Path) -> None:
        """Write metatrain's checkpoint with the averaged weights, which are taken over here too."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self._averages, strict=True):
                parameter.copy_(average)
        state = copy.deepcopy(self.model.state_dict())
        torch.save(self._checkpoint | {"model_state_dict": state, "best_model_state_dict": state}, path)


def loss_of(learner: Learner, frame: Frame, stage: Stage, agreement: float = 0.0) -> Tensor:
    if stage == "stress":
        return stress_loss(learner, learner.settle(frame))
    prediction = learner.predict(frame, both=stage == "both")
    loss = _huber(prediction.direct_forces - frame.forces)
    if stage == "direct":
        return loss
    assert prediction.energy is not None
    assert prediction.conservative_forces is not None
    assert prediction.direct_stress is not None
    assert prediction.conservative_stress is not None
    energy_error = (prediction.energy - (frame.energy - learner.baseline(frame))) / len(frame.numbers)
    loss = loss + _huber(prediction.conservative_forces - frame.forces) + ENERGY_WEIGHT * energy_error**2
    if agreement:
        loss = loss + agreement * _huber(prediction.direct_forces - prediction.conservative_forces)
    for stress in (prediction.direct_stress, prediction.conservative_stress):
        loss = (
            loss
            + VIRIAL_WEIGHT * ((stress - frame.stress) * frame.volume / len(frame.numbers)).square().mean()
        )
    return loss


def stress_loss(learner: Learner, settled: Settled) -> Tensor:
    """Of the third stage: as much for the sum over all atoms as errors that know nothing of each other would make of it."""
    virials, frame = learner.predict_virials(settled), settled.frame
    of_atoms = (virials - settled.virials).square().mean()
    of_sum = (virials.sum(dim=0) - frame.stress * frame.volume).square().mean()
    return of_atoms + of_sum / len(frame.numbers)


def train(
    learner: Learner,
    frames: Sequence[Frame],
    *,
    stage: Stage,
    seconds: float,
    learning_rate: float,
    seed: int,
    agreement: float = 0.0,
) -> int:
    """Update for a given time of this process: linear warm-up, then a cosine down to nothing. Returns the number of updates."""
    generator = torch.Generator().manual_seed(seed)
    learner.choose(stage)
    optimizers = _optimizers(learner, learning_rate)
    losses = _losses(learner, frames, stage, agreement, generator)
    learner.backend.train()
    began, n_updates, shown = time.process_time(), 0, 0.0
    for loss in losses:
        passed = (time.process_time() - began) / seconds
        if passed >= 1.0:
            break
        warmth = min(1.0, (n_updates + 1) / WARM_UP)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * warmth * 0.5 * (1.0 + math.cos(math.pi * passed))
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(_moving(learner.parameters), LARGEST_GRADIENT)
        for optimizer in optimizers:
            optimizer.step()
        learner.average()
        n_updates += 1
        shown = 0.98 * shown + 0.02 * loss.item()
        if n_updates % 500 == 0:
            print(f"{100 * passed:5.1f} %  {n_updates} updates, loss {shown:.5f}", flush=True)
    return n_updates


def _losses(
    learner: Learner, frames: Sequence[Frame], stage: Stage, agreement: float, generator: torch.Generator
) -> Iterator[Tensor]:
    """Of one frame after another: turned anew every time, but in the last stage, which keeps each as it was turned first."""
    if stage == "stress":
        settled = [learner.settle(frame.turned(_rotation(generator))) for frame in frames]
        return (stress_loss(learner, each) for each in _shuffled(settled, generator))
    return (
        loss_of(learner, frame.turned(_rotation(generator)), stage, agreement)
        for frame in _shuffled(frames, generator)
    )


def _optimizers(learner: Learner, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for what is left."""
    layers = (module for module in learner.backend.modules() if isinstance(module, torch.nn.Linear))
    large = {id(layer.weight) for layer in layers if min(layer.weight.shape) >= SMALLEST_MATRIX}
    moving = _moving(learner.parameters)
    matrices = [parameter for parameter in moving if id(parameter) in large]
    rest = [parameter for parameter in moving if id(parameter) not in large]
    return [
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=learning_rate, weight_decay=0.0, fused=True),
    ]


def _moving(parameters: Sequence[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _shuffled(items: Sequence[Item], generator: torch.Generator) -> Iterator[Item]:
    while True:
        for index in torch.randperm(len(items), generator=generator).tolist():
            yield items[index]


def _rotation(generator: torch.Generator) -> Tensor:
    orthogonal: Tensor = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    return orthogonal


def _huber(error: Tensor) -> Tensor:
    loss: Tensor = torch.nn.functional.huber_loss(error, torch.zeros_like(error), delta=HUBER)
    return loss


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("start", type=Path, help="metatrain checkpoint to go on from")
    parser.add_argument("output", type=Path, help="metatrain checkpoint to write")
    parser.add_argument("--stage", choices=get_args(Stage), required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--agreement", type=float, default=0.0, help="weight of the difference between both forces"
    )
    parser.add_argument(
        "--weights", type=Path, help="exported model to go on from: its weights, not those of START"
    )
    arguments = parser.parse_args()
    learner = Learner(torch.load(arguments.start, weights_only=False))
    if arguments.weights:
        learner.take_weights(arguments.weights)
    frames = [frame for path in arguments.data for frame in read_frames(path, learner.cutoff)]
    n_updates = train(
        learner,
        frames,
        stage=arguments.stage,
        seconds=60.0 * arguments.minutes,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        agreement=arguments.agreement,
    )
    learner.save(arguments.output)
    print(f"{n_updates} updates of one frame each, {len(frames)} frames: {arguments.output}")


if __name__ == "__main__":
    main()
