"""Endurance: one server under the highest request rate there is, watched from outside for memory, descriptors and latency.

    python benchmarks/soak.py [--minutes 60] [--output soak.json]

A real i-PI moves 192 atoms with `forceserver run noop`, which computes nothing, and writes next to nothing, so that requests
follow each other as fast as the conversation allows. Every 10 s: the resident memory and open descriptors of the server (and the
memory of i-PI, for comparison) from /proc, and the time that i-PI takes for a step, from its own log. A leak shows as a slope,
and as a last quarter above the first. One i-PI runs all the time, because a server ends with its i-PI; it is ended by SIGTERM,
and both must then leave with exit code 0. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from inputs import ENDLESS, write_input

BIN = Path(sys.executable).parent
WARM_UP_SECONDS = 30.0  # imports and first allocations are no leak
FAREWELL_SECONDS = 60.0
AVERAGE = re.compile(r"Average timings at MD step +(\d+)\. t/step: (\S+)")


@dataclass(frozen=True)
class Sample:
    """One look at the two processes."""

    time_s: float  # since the end of the warm-up
    step: int  # of i-PI
    step_time_ms: float  # mean over the last hundred steps
    server_memory_MiB: float  # resident
    server_descriptors: int
    ipi_memory_MiB: float


@dataclass(frozen=True)
class Trend:
    """What one quantity did over a soak."""

    first_quarter: float  # median
    last_quarter: float  # median
    slope_per_hour: float  # least squares

    @classmethod
    def of(cls, times_s: Sequence[float], values: Sequence[float]) -> Trend:
        quarter = max(1, len(values) // 4)
        slope = statistics.linear_regression(times_s, values).slope if len(values) > 1 else float("nan")
        return cls(statistics.median(values[:quarter]), statistics.median(values[-quarter:]), 3600.0 * slope)


def measure_memory(process_id: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def count_descriptors(process_id: int) -> int:
    return len(list(Path(f"/proc/{process_id}/fd").iterdir()))


def last_average(log: Path) -> tuple[int, float] | None:
    """The step that i-PI last reported and its mean time per step in ms; None before the first report."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        matches = AVERAGE.findall(file.read().decode(errors="replace"))
    return (int(matches[-1][0]), 1e3 * float(matches[-1][1])) if matches else None


def watch(
    server: subprocess.Popen[bytes], ipi: subprocess.Popen[bytes], log: Path, seconds: float, interval: float
) -> Iterator[Sample]:
    """Look at both until the time is over.

    Raises:
        RuntimeError: one of them ended.
    """
    began = time.monotonic() + WARM_UP_SECONDS
    next_look = began
    while next_look <= began + seconds:
        time.sleep(max(0.0, next_look - time.monotonic()))
        next_look += interval
        if server.poll() is not None or ipi.poll() is not None:
            raise RuntimeError(f"ended early: server {server.returncode}, i-PI {ipi.returncode}")
        average = last_average(log)
        if average is not None:
            memory, descriptors = measure_memory(server.pid), count_descriptors(server.pid)
            yield Sample(time.monotonic() - began, *average, memory, descriptors, measure_memory(ipi.pid))


def soak(folder: Path, seconds: float, interval: float) -> list[Sample]:
    """Run i-PI and a server in a folder and watch them; both are ended, and must end well.

    Raises:
        RuntimeError: one of them ended early, or not with exit code 0.
    """
    write_input(folder, steps=ENDLESS, output_stride=100_000)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log, server_log = folder / "i-pi.log", folder / "server.log"
    with log.open("wb") as ipi_output, server_log.open("wb") as server_output:
        ipi = subprocess.Popen(
            [str(BIN / "i-pi"), "input.xml"], cwd=folder, env=environment, stdout=ipi_output, stderr=subprocess.STDOUT
        )  # fmt: skip
        server = subprocess.Popen(
            [str(BIN / "forceserver"), "run", "noop", "-i", "input.xml"],
            cwd=folder, env=environment, stdout=server_output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        samples = []
        for sample in watch(server, ipi, log, seconds, interval):
            samples.append(sample)
            print(
                f"{sample.time_s:7.0f} s  step {sample.step:9d}  {sample.step_time_ms:6.3f} ms/step  server "
                f"{sample.server_memory_MiB:8.2f} MiB {sample.server_descriptors:3d} fds  i-PI {sample.ipi_memory_MiB:8.2f} MiB",
                flush=True,
            )
        ipi.terminate()
        codes = (server.wait(FAREWELL_SECONDS), ipi.wait(FAREWELL_SECONDS))
        if codes != (0, 0):
            raise RuntimeError(
                f"exit codes of server and i-PI: {codes}; the server said: {server_log.read_text()}"
            )
        return samples
    finally:
        for process in (server, ipi):
            process.kill()
            process.wait()


def trends(samples: Sequence[Sample]) -> dict[str, Trend]:
    """The trend of everything that must not grow."""
    times = [sample.time_s for sample in samples]
    names = ("server_memory_MiB", "server_descriptors", "step_time_ms", "ipi_memory_MiB")
    return {name: Trend.of(times, [getattr(sample, name) for sample in samples]) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--interval", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--output", type=Path, help="write samples and trends here, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fs-") as folder:
        samples = soak(Path(folder), 60.0 * arguments.minutes, arguments.interval)
    found = trends(samples)
    n_steps = samples[-1].step - samples[0].step
    print(f"\n{n_steps} force requests in {samples[-1].time_s - samples[0].time_s:.0f} s")
    print(f"{'':20s} {'first quarter':>14s} {'last quarter':>13s} {'slope per hour':>15s}")
    for name, trend in found.items():
        print(
            f"{name:20s} {trend.first_quarter:14.3f} {trend.last_quarter:13.3f} {trend.slope_per_hour:15.4f}"
        )
    if arguments.output is not None:
        report = {
            "force_requests": n_steps,
            "trends": {name: asdict(trend) for name, trend in found.items()},
            "samples": [asdict(sample) for sample in samples],
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
