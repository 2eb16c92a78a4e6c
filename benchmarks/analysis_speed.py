"""How fast trajectories are read, and how long the analysis of a nanosecond of water takes.

    python benchmarks/analysis_speed.py reading [--gigabytes 1] [--with mdanalysis]
    python benchmarks/analysis_speed.py analysis [--nanoseconds 1]

Writes large files into a temporary directory and removes them. `reading` prints seconds and peak memory of each reader,
each in a process of its own; `--with mdanalysis` wants MDAnalysis in this environment. `analysis` writes what the inputs
of `ipi_inputs` write for 64 waters: properties and velocities every 2 fs, positions every 10 fs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from analysis_runs import (
    Setting,
    clean_columns,
    water_positions,
    water_velocities,
    write_setting,
    write_table,
    write_trajectory,
)

READERS = {
    "analysis": """
from analysis.trajectories import open_trajectory
total = sum(block.values.sum() for block in open_trajectory(Path(path)).blocks())""",
    "ase": """
from ase.io import read
total = sum(atoms.positions.sum() for atoms in read(path, index=":", format="extxyz"))""",
    "mdanalysis": """
import MDAnalysis
total = sum(frame.positions.sum() for frame in MDAnalysis.Universe(path, format="XYZ").trajectory)""",
}
TIMED = """
import resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
path = sys.argv[1]
start = time.perf_counter(){body}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
print(f"{{time.perf_counter() - start:8.2f}} s   {{peak:8.0f}} MB peak")
"""
CHUNK = 500  # frames written at once


def write_long(
    path: Path, setting: Setting, frames: np.ndarray, quantity: str, unit: str, n_frames: int, stride: int
) -> None:
    """A long trajectory: some frames over and over, under their own step numbers."""
    write_trajectory(path, setting, frames, quantity, unit)
    block = np.frombuffer(path.read_bytes(), np.uint8).reshape(len(frames), -1).copy()
    place = block[0].tobytes().index(b"Step:") + 7
    with path.open("wb") as stream:
        for start in range(0, n_frames, len(frames)):
            steps = (start + np.arange(len(frames))) * stride
            block[:, place : place + 10] = np.frombuffer(
                "".join(f"{s:10d}" for s in steps).encode(), np.uint8
            ).reshape(-1, 10)
            stream.write(block[: n_frames - start].tobytes())


def reading(directory: Path, gigabytes: float, readers: list[str]) -> None:
    setting = Setting()
    rng = np.random.default_rng(0)
    frames = water_positions(setting) + rng.normal(size=(CHUNK, 192, 3)) * 0.1
    path = directory / "positions.xyz"
    write_long(path, setting, frames, "positions", "angstrom", int(gigabytes * 1e9 / 9400), 20)
    print(f"{path.stat().st_size / 1e9:.2f} GB, {setting.n_waters * 3} atoms per frame")
    for reader in readers:
        code = TIMED.format(body=READERS[reader])
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
        print(f"{reader:12s}", done.stdout.strip() or done.stderr.strip().splitlines()[-1])


def analysis(directory: Path, nanoseconds: float) -> None:
    setting = Setting(stride=4)
    n_rows = int(nanoseconds * 1e6 / 2)
    velocities = water_velocities(setting, 20_000, 1)
    columns = clean_columns(setting, 20_000, 1, velocities)
    repeats = -(-n_rows // 20_000)
    rng = np.random.default_rng(3)
    long = {name: np.tile(own, repeats)[:n_rows] for name, own in columns.items()}
    long = {name: own + 1e-6 * rng.normal(size=n_rows) for name, own in long.items()}
    long["step"], long["time{picosecond}"] = np.arange(n_rows) * 4.0, np.arange(n_rows) * 0.002
    write_setting(directory, setting)
    write_table(directory / "simulation.out", long)
    write_long(
        directory / "simulation.vel_0.xyz", setting, velocities[:2000], "velocities", "a/ps", n_rows, 4
    )
    walk = water_positions(setting) + np.cumsum(velocities[:2000], axis=0) * 0.002
    write_long(directory / "simulation.pos_0.xyz", setting, walk, "positions", "angstrom", n_rows // 5, 20)
    size = sum(file.stat().st_size for file in directory.iterdir()) / 1e9
    start = time.perf_counter()
    command = "from analysis.cli import analyze; analyze()"
    subprocess.run(
        [sys.executable, "-c", command, str(directory), "-o", str(directory / "report")],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    print(
        f"{nanoseconds:g} ns of 64 waters, {size:.1f} GB of outputs: report after {time.perf_counter() - start:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("reading", "analysis"))
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--nanoseconds", type=float, default=1.0)
    parser.add_argument("--with", dest="more", action="append", default=[], choices=sorted(READERS))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if chosen.what == "reading":
            reading(Path(name), chosen.gigabytes, ["analysis", "ase", *chosen.more])
        else:
            analysis(Path(name), chosen.nanoseconds)


if __name__ == "__main__":
    main()
