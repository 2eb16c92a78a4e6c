"""The model alone, in a loop over prepared structures, behind the same orders as `stepper`: what no server can be faster than.

    python -m forceserver.bench.bare JSON DESCRIPTOR

JSON: `model`, `device`, `structure`, `passes`: the model calls of one step, [structures, kinds of forces] each. It says `ready`
with what the model can do. Times in s, units eV and angstrom.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forceserver.bench.control import Control
from forceserver.bench.stepper import die_with_parent
from forceserver.errors import ForceServerError
from forceserver.parallel import Crew, keep_heaps
from forceserver.parts import take_apart
from forceserver.potentials import load_potential
from forceserver.potentials.interface import BatchBuilder, Potential
from forceserver.structure_files import read_structure, to_structure
from forceserver.structures import CONSERVATIVE, ForceKind, Structure

N_VARIANTS = 4  # geometries through which the loop goes round
SPREAD = 0.05  # A, of the replicas, as of a ring polymer
STEP = 0.01  # A, from one geometry to the next

Pass = tuple[int, frozenset[ForceKind]]


class BareModel:
    """A potential and the batches of one step.

    Args:
        potential: the model.
        structure: which all replicas are displaced from.
        passes: the model calls of one step.
    """

    def __init__(self, potential: Potential, structure: Structure, passes: Sequence[Pass]) -> None:
        self._potential = potential
        self._builder = BatchBuilder(potential.capabilities.dtype, potential.capabilities.device)
        self._crew = Crew(potential, torch.get_num_threads())
        generator = np.random.default_rng(0)
        n_replicas = max((count for count, _ in passes), default=1)
        replicas = [structure.displaced(SPREAD, generator) for _ in range(n_replicas)]
        self._structures = [
            [replica.displaced(STEP, generator) for replica in replicas] for _ in range(N_VARIANTS)
        ]
        sizes = {count for count, _ in passes}
        self._batches = [
            {size: self._builder.build(variant[:size]) for size in sizes} for variant in self._structures
        ]
        self._first = self._builder.build([structure])
        self._passes = passes

    def look(self) -> float:
        """The energy of the structure itself, eV."""
        return float(self._potential(self._first, frozenset({CONSERVATIVE})).energies[0])

    def run(self, n_steps: int) -> list[float]:
        """The times at which each step ended, and before them that at which the first began."""
        ended = [time.perf_counter()]
        for step in range(n_steps):
            for size, kinds in self._passes:
                self._evaluate(step % N_VARIANTS, size, kinds)
            self._wait()
            ended.append(time.perf_counter())
        return ended

    def dissect(self, n_steps: int) -> Mapping[str, float]:
        """Seconds of one step by what is done: the same work with a clock in between, batches made afresh each time, and what
        is else done at the same time one after the other.
        """
        seconds: dict[str, float] = defaultdict(float)
        for step in range(n_steps):
            for size, kinds in self._passes:
                for call in self._calls(step % N_VARIANTS, size):
                    self._dissect_pass(call, kinds, seconds)
        return {phase: value / n_steps for phase, value in seconds.items()}

    def _dissect_pass(
        self, structures: Sequence[Structure], kinds: frozenset[ForceKind], seconds: dict[str, float]
    ) -> None:
        with self._timed(seconds, "to the device"):
            batch = self._builder.build(structures)
        model: dict[str, float] = defaultdict(float)
        backward: dict[str, float] = defaultdict(float)
        lists_before = self._seconds_of_lists()
        with _backward_clock(self, backward), self._timed(model, "all"):
            evaluation = self._potential(batch, kinds)
        with self._timed(seconds, "from the device"):
            take_apart(evaluation, structures)
        lists = self._seconds_of_lists() - lists_before
        seconds["neighbour lists"] += lists
        seconds["backward"] += backward["all"]
        seconds["forward"] += model["all"] - lists - backward["all"]

    @contextmanager
    def _timed(self, seconds: dict[str, float], phase: str) -> Iterator[None]:
        self._wait()
        began = time.perf_counter()
        yield
        self._wait()
        seconds[phase] += time.perf_counter() - began

    def _seconds_of_lists(self) -> float:
        statistics = getattr(self._potential, "neighbor_statistics", None)
        return 0.0 if statistics is None else float(statistics.seconds)

    def _evaluate(self, variant: int, size: int, kinds: frozenset[ForceKind]) -> None:
        calls = self._calls(variant, size)
        if len(calls) > 1:
            self._crew.evaluate(calls, kinds)
        else:
            self._potential(self._batches[variant][size], kinds)

    def _calls(self, variant: int, size: int) -> list[Sequence[Structure]]:
        structures = self._structures[variant][:size]
        return [structures[cut] for cut in self._crew.cut([structure.n_atoms for structure in structures])]

    def _wait(self) -> None:
        if self._potential.capabilities.device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def _backward_clock(model: BareModel, seconds: dict[str, float]) -> Iterator[None]:
    """Every conservative force here comes from `torch.autograd.grad`: let a clock stand before it for a while."""
    grad = torch.autograd.grad

    def timed_grad(*args: Any, **keywords: Any) -> Any:
        with model._timed(seconds, "all"):
            return grad(*args, **keywords)

    torch.autograd.grad = timed_grad
    try:
        yield
    finally:
        torch.autograd.grad = grad


def _obey(control: Control, model: BareModel) -> None:
    while order := control.receive():
        if order["do"] == "look":
            control.send(potential_eV=model.look(), force=None)
        elif order["do"] == "run":
            control.send(ended=model.run(order["steps"]))
        elif order["do"] == "dissect":
            control.send(seconds=model.dissect(order["steps"]))
        else:
            break


def main() -> None:
    die_with_parent()
    keep_heaps(torch.get_num_threads())
    wanted, control = json.loads(sys.argv[1]), Control.from_descriptor(int(sys.argv[2]))
    try:
        potential = load_potential(wanted["model"], device=wanted["device"])
        passes = [(count, frozenset(kinds)) for count, kinds in wanted["passes"]]
        model = BareModel(potential, to_structure(read_structure(Path(wanted["structure"]))), passes)
    except ForceServerError as error:
        control.send(error=str(error), exit_code=error.exit_code)
        return
    able = potential.capabilities
    control.send(
        ready=True,
        name=able.name,
        elements=None if able.elements is None else sorted(able.elements),
        direct=able.direct,
        conservative=able.conservative,
        synthetic_direct=able.synthetic_direct,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if able.device.type == "cuda" else "cpu",
    )
    _obey(control, model)


if __name__ == "__main__":
    main()
