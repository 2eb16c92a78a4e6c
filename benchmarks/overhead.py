"""i-PI's wall time per step with a force provider that computes nothing: what the conversation itself costs.

    python benchmarks/overhead.py [--starts 4] [--pairs 20] [--steps 100] [--case "1 bead"] [--latency 1e-3]

Ours (`forceserver run noop`) against i-PI's own Python driver (`i-pi-py_driver -m dummy`), 192 atoms. Each has an i-PI of its
own, which moves in short blocks of steps, in turn with the other one: ours, theirs, theirs, ours, and so on. Who is not moving is
stopped (SIGSTOP). So what else the machine does falls on both alike, and the ratio of two neighbouring blocks says more than two
long runs. All is started anew a few times, because two starts of the same program differ by some percent (where things lie in
memory). Printed: medians of the time per step, and of the ratios of pairs, with the 95 % interval of that median and the
quartiles of the ratios. Ratios below 1 mean that ours is faster. torch runs on one thread. i-PI looks for answers as often as it
does by default (`<latency>` 1e-4 s); `--latency 1e-3` is that of the inputs of `ipi_inputs`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inputs import ENDLESS, IPI_LATENCY, write_input

BIN = Path(sys.executable).parent
STEPWISE_IPI = Path(__file__).with_name("stepwise_ipi.py")


@dataclass(frozen=True)
class Case:
    name: str
    n_beads: int
    batch_size: int
    mode: str = "unix"


CASES = (
    Case("1 bead, unix", 1, 1),
    Case("1 bead, inet", 1, 1, "inet"),
    Case("32 beads, unix", 32, 1),
    Case("32 beads, batched, unix", 32, 32),
)


class Contender:
    """One i-PI and its force provider; both stand still, except while they are asked for steps."""

    def __init__(self, ipi: subprocess.Popen[str], provider: subprocess.Popen[bytes]) -> None:
        self._ipi, self._provider = ipi, provider

    def seconds_per_step(self, n_steps: int) -> float:
        assert self._ipi.stdin is not None
        assert self._ipi.stdout is not None
        self._signal(signal.SIGCONT)
        print(n_steps, file=self._ipi.stdin, flush=True)
        seconds = float(self._ipi.stdout.readline())
        self._signal(signal.SIGSTOP)
        return seconds / n_steps

    def end(self) -> None:
        self._signal(signal.SIGCONT)
        for process in (self._ipi, self._provider):
            with contextlib.suppress(subprocess.TimeoutExpired):
                if process.stdin is not None:
                    process.stdin.close()
                process.wait(20)
            process.kill()
            process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for process in (self._provider, self._ipi):
            process.send_signal(number)


@contextmanager
def contender(case: Case, command: list[str], port: int, latency: float) -> Iterator[Contender]:
    """Start an i-PI and a provider; the command may hold `{folder}` and `{port}`."""
    with tempfile.TemporaryDirectory(prefix="fs-") as name:
        folder = Path(name)
        write_input(
            folder, steps=ENDLESS, mode=case.mode, port=port, n_beads=case.n_beads, batch_size=case.batch_size,
            latency=latency,
        )  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with (folder / "i-pi.log").open("w") as log:
            ipi = subprocess.Popen(
                [sys.executable, str(STEPWISE_IPI), "input.xml"], cwd=folder, env=environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        while "Starting the polling thread" not in (folder / "i-pi.log").read_text():
            time.sleep(0.05)  # the driver of i-PI does not wait for its socket
            if ipi.poll() is not None:
                raise RuntimeError(f"i-PI ended early: {(folder / 'i-pi.log').read_text()[-2000:]}")
        provider = subprocess.Popen(
            [word.format(folder=folder, port=port) for word in command], cwd=folder, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        pair = Contender(ipi, provider)
        try:
            yield pair
        finally:
            pair.end()


def providers(case: Case) -> tuple[list[str], list[str]]:
    """The commands: ours, and i-PI's own driver."""
    where = (
        ["-a", "localhost", "-p", "{port}"]
        if case.mode == "inet"
        else ["-u", "-a", "ff", "-S", "{folder}/s_"]
    )
    return (
        [str(BIN / "forceserver"), "run", "noop", "-i", "input.xml"],
        [str(BIN / "i-pi-py_driver"), "-m", "dummy", *where],
    )


def measure(case: Case, n_pairs: int, n_steps: int, port: int, latency: float) -> list[tuple[float, float]]:
    """Seconds per step of ours and theirs in neighbouring blocks; the first block of each is not counted."""
    ours, theirs = providers(case)
    times = []
    with (
        contender(case, ours, port, latency) as first,
        contender(case, theirs, port + 1, latency) as second,
    ):
        for each in (first, second):
            each.seconds_per_step(n_steps)
        for pair in range(n_pairs):
            if pair % 2 == 0:
                ours_s = first.seconds_per_step(n_steps)
                theirs_s = second.seconds_per_step(n_steps)
            else:
                theirs_s = second.seconds_per_step(n_steps)
                ours_s = first.seconds_per_step(n_steps)
            times.append((ours_s, theirs_s))
    return times


def median_interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of a median, from order statistics: nothing is assumed of the distribution."""
    ordered = sorted(values)
    margin = 0.98 * len(ordered) ** 0.5  # 1.96 times the standard deviation of a binomial with p = 1/2
    low = max(0, int(len(ordered) / 2 - margin))
    high = min(len(ordered) - 1, int(len(ordered) / 2 + margin))
    return ordered[low], ordered[high]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=4, help="of all processes, each case")
    parser.add_argument("--pairs", type=int, default=20, help="of neighbouring blocks, each start")
    parser.add_argument("--steps", type=int, default=100, help="in a block of 1 bead; 32 beads get a quarter")
    parser.add_argument("--case", default="", help="only the cases whose name holds this")
    parser.add_argument("--latency", type=float, default=IPI_LATENCY, help="s, of i-PI's sockets")
    arguments = parser.parse_args()
    print(
        f"{'case':26s} {'ours':>8s} {'driver':>8s} ms/step {'ratio':>7s} {'95 % interval':>15s} {'quartiles':>15s}"
    )
    port = 42000 + os.getpid() % 10000
    for case in CASES:
        if arguments.case not in case.name:
            continue
        n_steps = arguments.steps if case.n_beads == 1 else max(1, arguments.steps // 4)
        times = []
        for _ in range(arguments.starts):
            port += 2
            times += measure(case, arguments.pairs, n_steps, port, arguments.latency)
        ratios = [ours / theirs for ours, theirs in times]
        low, high = median_interval(ratios)
        lower, _, upper = statistics.quantiles(ratios, n=4)
        ours_ms, theirs_ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{case.name:26s} {ours_ms:8.3f} {theirs_ms:8.3f} {'':7s} {statistics.median(ratios):7.3f} "
            f"{low:7.3f} {high:7.3f} {lower:7.3f} {upper:7.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
