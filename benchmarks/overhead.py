"""i-PI's wall time per step with a force provider that computes nothing: what the conversation itself costs.

    python benchmarks/overhead.py [--repeats 5] [--steps 400]

Ours (`forceserver run noop`) against i-PI's own Python driver (`i-pi-py_driver -m dummy`), 192 atoms, in turn, in one run. The
time is i-PI's own (`t/step` in its log, the last hundreds of steps). Ratios below 1 mean that ours is faster. torch runs on
one thread.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
WATER64 = Path(__file__).parents[1] / "ipi_inputs" / "water64.xyz"
INPUT = """<simulation verbosity="medium" sockets_prefix="{folder}/s_">
  <output prefix="out"><properties stride="100" filename="out"> [ step, conserved ] </properties></output>
  <total_steps>{steps}</total_steps>
  <ffsocket name="ff" mode="{mode}" pbc="false">
    <address>{address}</address><port>{port}</port><batch_size>{batch_size}</batch_size>
  </ffsocket>
  <system>
    <initialize nbeads="{n_beads}"><file mode="xyz"> {structure} </file>
      <velocities mode="thermal" units="kelvin"> 300 </velocities></initialize>
    <forces><force forcefield="ff"/></forces>
    <ensemble><temperature units="kelvin"> 300 </temperature></ensemble>
    <motion mode="dynamics"><dynamics mode="nve"><timestep units="femtosecond"> 0.5 </timestep></dynamics></motion>
  </system>
</simulation>
"""
AVERAGE = re.compile(r"Average timings at MD step +(\d+)\. t/step: (\S+)")


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


def seconds_per_step(case: Case, provider: str, steps: int, port: int) -> float:
    """One run; the mean time of the steps after the first hundred."""
    with tempfile.TemporaryDirectory(prefix="fs-") as folder:
        address = "localhost" if case.mode == "inet" else "ff"
        text = INPUT.format(
            folder=folder, steps=steps, mode=case.mode, address=address, port=port, batch_size=case.batch_size,
            n_beads=case.n_beads, structure=WATER64,
        )  # fmt: skip
        Path(folder, "input.xml").write_text(text)
        ours = [str(BIN / "forceserver"), "run", "noop", "-i", "input.xml"]
        where = (
            ["-a", address, "-p", str(port)]
            if case.mode == "inet"
            else ["-u", "-a", address, "-S", f"{folder}/s_"]
        )
        theirs = [str(BIN / "i-pi-py_driver"), "-m", "dummy", *where]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ipi = subprocess.Popen(
            [str(BIN / "i-pi"), "input.xml"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        assert ipi.stdout is not None
        log = ""
        for line in ipi.stdout:  # the driver of i-PI does not wait for its socket
            log += line
            if "Starting the polling thread" in line:
                break
        driver = subprocess.Popen(
            ours if provider == "ours" else theirs, cwd=folder, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        log += ipi.communicate(timeout=600)[0]
        driver.wait(30)
        averages = [float(match[2]) for match in AVERAGE.finditer(log) if int(match[1]) >= 200]
        return statistics.mean(averages)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    print(
        f"{'case':26s} {'ours ms/step':>13s} {'py_driver':>11s} {'ratio: median':>14s} {'min':>6s} {'max':>6s}"
    )
    port = 42000 + os.getpid() % 10000
    for case in CASES:
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for repeat in range(arguments.repeats):
            order = ("ours", "theirs") if repeat % 2 == 0 else ("theirs", "ours")
            for provider in order:
                port += 1
                times[provider].append(seconds_per_step(case, provider, arguments.steps, port))
        ratios = [ours / theirs for ours, theirs in zip(times["ours"], times["theirs"], strict=True)]
        print(
            f"{case.name:26s} {1e3 * statistics.median(times['ours']):13.3f} {1e3 * statistics.median(times['theirs']):11.3f} "
            f"{statistics.median(ratios):14.3f} {min(ratios):6.3f} {max(ratios):6.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
