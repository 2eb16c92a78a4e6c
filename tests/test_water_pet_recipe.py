"""The recipe of water-pet, end to end and small: frames, start, every stage, export, served with both heads and stresses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import yaml

from forceserver.potentials import load_potential
from forceserver.potentials.interface import Batch
from forceserver.structures import CONSERVATIVE, DIRECT, Structure
from real_ipi import BIN
from water_pet_scripts import FOLDER, few_frames, import_script, script

pytest.importorskip("metatrain")

SMALL = {"d_pet": 16, "d_head": 16, "d_node": 16, "d_feedforward": 16, "num_heads": 2, "num_gnn_layers": 1}


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _train(folder: Path, start: str, output: str, stage: str, seconds: float, *more: str) -> None:
    options = [
        "--stage",
        stage,
        "--minutes",
        f"{seconds / 60}",
        "--learning-rate",
        "1e-2",
        "--data",
        "valid.xyz",
        *more,
    ]
    _run(folder, sys.executable, str(script("train")), start, output, *options)


def _mean_losses(checkpoint: Path, data: Path) -> Mapping[str, float]:
    """By stage, over all frames."""
    train = import_script("train")
    learner = train.Learner(torch.load(checkpoint, weights_only=False))
    frames = train.read_frames(data, learner.cutoff)
    return {
        stage: float(np.mean([train.loss_of(learner, frame, stage).item() for frame in frames]))
        for stage in ("direct", "both", "stress")
    }


def _predict(checkpoint: Path, data: Path) -> tuple[Any, float]:
    """What the training sees of the first frame, and the energy of its composition."""
    train = import_script("train")
    learner = train.Learner(torch.load(checkpoint, weights_only=False))
    learner.backend.eval()
    frame = train.read_frames(data, learner.cutoff)[0]
    return learner.predict(frame, both=True), learner.baseline(frame)


def _virials(checkpoint: Path, data: Path) -> tuple[Any, Any]:
    """(n_atoms, 3, 3) eV of the first frame, the shares of its atoms: as the energy says, and as the direct stress does."""
    train = import_script("train")
    learner = train.Learner(torch.load(checkpoint, weights_only=False))
    settled = learner.settle(train.read_frames(data, learner.cutoff)[0])
    return settled.virials, learner.predict_virials(settled).detach()


@pytest.mark.slow
def test_a_small_water_pet_is_made_and_served(tmp_path: Path) -> None:
    frames = list(few_frames(4))
    ase.io.write(tmp_path / "valid.xyz", frames, format="extxyz")
    options = yaml.safe_load((FOLDER / "options.yaml").read_text())
    options["architecture"]["model"] |= SMALL
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    _run(tmp_path, str(BIN / "mtt"), "train", "options.yaml", "-o", "start")
    _train(tmp_path, "start.ckpt", "direct.ckpt", "direct", 6.0)
    _train(tmp_path, "direct.ckpt", "both.ckpt", "both", 8.0)
    _train(tmp_path, "both.ckpt", "all.ckpt", "stress", 4.0)
    _run(tmp_path, str(BIN / "mtt"), "export", "all.ckpt", "-o", "model.pt")

    data = tmp_path / "valid.xyz"
    start, direct, both, everything = (
        _mean_losses(tmp_path / f"{name}.ckpt", data) for name in ("start", "direct", "both", "all")
    )
    assert direct["direct"] < start["direct"]
    assert both["both"] < direct["both"]
    assert everything["stress"] < both["stress"]
    assert everything["direct"] == both["direct"], "the last stage moves nothing but the stress"
    assert everything["both"] != both["both"]

    standstill = ("--learning-rate", "1e-30", "--agreement", "1")
    _train(tmp_path, "start.ckpt", "again.ckpt", "both", 0.1, "--weights", "model.pt", *standstill)
    assert _mean_losses(tmp_path / "again.ckpt", data) == everything, "an exported model is one to go on from"

    potential = load_potential(str(tmp_path / "model.pt"))
    assert potential.capabilities.direct_virial
    structure = Structure(
        frames[0].numbers.astype(np.int64), frames[0].positions, frames[0].cell.array, np.full(3, True)
    )
    batch = Batch.from_structures([structure], dtype=torch.float32, device=torch.device("cpu"))
    served = potential(batch, frozenset({CONSERVATIVE, DIRECT}))
    trained, baseline = _predict(tmp_path / "all.ckpt", data)
    assert served.conservative is not None
    assert served.direct is not None
    assert float(served.energies[0]) == pytest.approx(trained.energy.item() + baseline, abs=1e-3)
    volume = frames[0].get_volume()
    own = (trained.conservative_stress, trained.direct_stress)
    for shares, stress in zip(_virials(tmp_path / "all.ckpt", data), own, strict=True):
        assert shares.shape == (len(frames[0]), 3, 3)
        torch.testing.assert_close(shares, shares.transpose(1, 2))
        symmetric = 0.5 * volume * (stress + stress.T)
        torch.testing.assert_close(shares.sum(dim=0), symmetric, atol=1e-4, rtol=1e-3)
    for given, forces, stress in (
        (served.conservative, trained.conservative_forces, trained.conservative_stress),
        (served.direct, trained.direct_forces, trained.direct_stress),
    ):
        assert given.virials is not None
        torch.testing.assert_close(given.forces, forces, atol=1e-4, rtol=1e-3)
        symmetric = 0.5 * (stress + stress.T)
        torch.testing.assert_close(-given.virials[0] / volume, symmetric, atol=1e-5, rtol=1e-3)
