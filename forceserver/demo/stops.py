"""The stops of the tour: inputs from the library, their lengths, and the time that they will take.

Lengths in ps, steps in fs, costs in seconds.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forceserver.demo.costs import runs_at_once, time_evaluations
from forceserver.structures import CONSERVATIVE, DIRECT

if TYPE_CHECKING:
    from ipi_inputs import InputFile

M = 4  # inner steps of 0.5 fs in an outer one
# Draws velocities with which H and O both have 296 K on average over the first 0.1 ps of conservative dynamics: after most draws
# for 64 molecules one of them is off by 20 K, which a short run does not forget.
SEED = 227
MIN_STEPS = 16  # of i-PI: enough rows of output for an error bar
STRETCHED_PS = 1.5  # beyond which no stop is longer than its share
START_SECONDS = 6.0  # for i-PI and its server to start and to end


@dataclass(frozen=True)
class Stop:
    """One stop of the tour."""

    title: str
    input_name: str  # in the library of inputs
    share: float  # of the simulated time
    mts: int = 1
    forces: str = ""  # other than the input's own
    tau_fs: float | None = None  # of the thermostat, other than the input's own
    stretch: float = 1.0  # times its share, as far as `STRETCHED_PS`: what its verdict takes in a short tour

    @property
    def timestep_fs(self) -> float:
        """Of i-PI: the outer step."""
        return 0.5 * self.mts

    @property
    def folder_name(self) -> str:
        return self.title.replace(" ", "-").lower()

    def n_steps(self, time_ps: float) -> int:
        """Steps of i-PI that make up its share of a simulated time."""
        own_ps = self.share * time_ps
        length_ps = max(own_ps, min(self.stretch * own_ps, STRETCHED_PS))
        return max(MIN_STEPS, round(1e3 * length_ps / self.timestep_fs))

    def input_file(self, time_ps: float) -> InputFile:
        """The input, edited."""
        from ipi_inputs import load

        file = load(self.input_name).with_(steps=self.n_steps(time_ps), prefix="demo", seed=SEED)
        if self.mts > 1:
            file = file.with_(mts=self.mts)
        if self.forces:
            file = file.with_(forces=self.forces)
        return file if self.tau_fs is None else file.with_(tau_fs=self.tau_fs)


STOPS = (
    Stop("NVE conservative", "nve", 1.0),
    Stop("NVE direct", "nve-direct", 1.0, stretch=15.0),
    Stop("NVE blended", "nve-blended", 0.5),
    Stop(f"NVE MTS {M}", "nve-mts", 1.0, mts=M),
    Stop("SVR direct", "nvt-svr", 2.0, forces="direct", tau_fs=10.0),
    Stop(f"SVR MTS {M}", "nvt-mts-svr", 2.0, mts=M),
    Stop(f"PIMD MTS {M}", "pimd-mts", 0.3, mts=M),
)


def expected_seconds(
    steps_left: Sequence[tuple[Stop, int]], time_ps: float, model: str, device: str = "cpu"
) -> float:
    """How long the rest of a tour will take here, from the costs of single evaluations of the box of water.

    Args:
        steps_left: of the stops that have not ended.
        time_ps: of the tour.
        model: MODEL.
        device: a torch device.

    Raises:
        UsageError: the model cannot be loaded, or the device is not there.
    """
    n_at_once, n_threads = runs_at_once(device)
    costs = _measure_costs(model, device, n_threads)
    free_at = [0.0] * n_at_once
    for stop, n_steps in steps_left:
        seconds = START_SECONDS + n_steps * _seconds_per_step(stop, time_ps, costs)
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


def _seconds_per_step(stop: Stop, time_ps: float, costs: Mapping[str, float]) -> float:
    """Where a geometry is evaluated for both kinds of forces, one forward pass gives both."""
    from ipi_inputs.cost import cost_of

    counts = cost_of(stop.input_file(time_ps).facts).per_outer_step
    slow, fast = counts.get(CONSERVATIVE, 0.0), counts.get(DIRECT, 0.0)
    both = min(slow, fast)
    return both * costs["both"] + (slow - both) * costs[CONSERVATIVE] + (fast - both) * costs[DIRECT]


def _measure_costs(model: str, device: str, n_threads: int) -> Mapping[str, float]:
    """Seconds for one evaluation, by what is wanted."""
    import torch

    from forceserver.potentials import load_potential
    from forceserver.structure_files import read_structure, to_structure
    from ipi_inputs import load

    torch.set_num_threads(n_threads)
    structure = to_structure(read_structure(load(STOPS[0].input_name).structures[0]))
    found = time_evaluations(load_potential(model, device=device), [structure], n_repeats=5)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def duration_text(seconds: float) -> str:
    """A duration for people."""
    minutes = max(1, round(seconds / 60.0))
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600.0:.1f} h"
