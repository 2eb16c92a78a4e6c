"""Real i-PI and real servers as processes, for tests that trust nothing less."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import numpy as np

BIN = Path(sys.executable).parent
WATER64 = Path(__file__).parents[1] / "ipi_inputs" / "water64.xyz"

INPUT = Template("""<simulation verbosity="low" sockets_prefix="$prefix">
  <output prefix="simulation">
    <properties stride="1" filename="out">
      [ step, conserved{electronvolt}, potential{electronvolt}, kinetic_md{electronvolt}$properties ]
    </properties>
    <trajectory stride="1" filename="pos" bead="0" format="xyz"> positions{angstrom} </trajectory>
    <trajectory stride="1" filename="for" bead="0" format="xyz"> forces{ev/ang} </trajectory>
  </output>
  <total_steps>$steps</total_steps>
  <prng><seed>31415</seed></prng>
  $forcefields
  <system>
    <initialize nbeads="$beads">
      $initialize
      <velocities mode="thermal" units="kelvin"> 300 </velocities>
    </initialize>
    <forces>$forces</forces>
    <ensemble><temperature units="kelvin"> 300 </temperature><pressure units="bar"> 1 </pressure></ensemble>
    <motion mode="dynamics">
      <fixcom> False </fixcom>
      <dynamics mode="$mode">
        <timestep units="femtosecond"> $timestep </timestep>
        $dynamics
      </dynamics>
    </motion>
  </system>
</simulation>
""")

DEFAULTS: dict[str, object] = {
    "properties": "", "steps": 10, "beads": 1, "mode": "nve", "timestep": 0.5, "dynamics": "",
    "initialize": '<file mode="xyz"> structure.xyz </file>',
}  # fmt: skip


@dataclass(frozen=True)
class Socket:
    """One `<ffsocket>` and its `<force>`."""

    name: str = "forces"
    parameters: str = "{}"
    mode: str = "unix"
    port: int = 0
    batch_size: int = 1
    consolidate: bool = True
    mts_weights: str = ""
    n_beads: int = 0

    def forcefield(self) -> str:
        port = f"<port>{self.port}</port>" if self.mode == "inet" else ""
        address = "localhost" if self.mode == "inet" else self.name
        return f"""<ffsocket name="{self.name}" mode="{self.mode}" pbc="false">
            <address>{address}</address>{port}<parameters>{self.parameters}</parameters>
            <batch_size>{self.batch_size}</batch_size><consolidate_messages>{self.consolidate}</consolidate_messages>
          </ffsocket>"""

    def force(self) -> str:
        weights = f"<mts_weights>{self.mts_weights}</mts_weights>" if self.mts_weights else ""
        return f'<force forcefield="{self.name}" nbeads="{self.n_beads}">{weights}</force>'


@dataclass
class Workplace:
    """A folder with a short path (socket names have at most 107 characters) in which i-PI and servers run."""

    path: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def write_input(
        self, *sockets: Socket, structure: Path = WATER64, name: str = "input.xml", **changes: object
    ) -> Path:
        shutil.copy(structure, self.path / "structure.xyz")
        values = DEFAULTS | {
            "prefix": f"{self.path}/s_",
            "forcefields": "".join(each.forcefield() for each in sockets),
            "forces": "".join(each.force() for each in sockets),
        }
        (self.path / name).write_text(INPUT.substitute(values | changes))
        return self.path / name

    def start(self, *command: str, log: str) -> subprocess.Popen[str]:
        with (self.path / log).open("w") as file:
            process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=self.path,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.running.append(process)
        return process

    def start_ipi(self, name: str = "input.xml") -> subprocess.Popen[str]:
        return self.start("i-pi", name, log="ipi.log")

    def start_server(self, model: str, *options: str, log: str = "server.log") -> subprocess.Popen[str]:
        return self.start("forceserver", "run", model, *(options or ("-i", "input.xml")), log=log)

    def read(self, name: str) -> str:
        return (self.path / name).read_text()

    def properties(self) -> np.ndarray:
        rows = [
            line.split()
            for line in self.read("simulation.out").splitlines(keepends=True)
            if line[0] != "#" and line[-1] == "\n"
        ]
        return np.array(rows, dtype=float)

    def trajectory(self, name: str) -> np.ndarray:
        """All frames of an i-PI xyz, (n_frames, n_atoms, 3)."""
        lines = self.read(name).splitlines()
        n_atoms = int(lines[0])
        frames = [lines[i + 2 : i + 2 + n_atoms] for i in range(0, len(lines), n_atoms + 2)]
        return np.array([[line.split()[1:] for line in frame] for frame in frames], dtype=float)

    def run(self, model: str, *options: str, seconds: float = 120.0) -> str:
        """Run i-PI and one server to the end; both must succeed. Returns the log of the server."""
        ipi = self.start_ipi()
        server = self.start_server(model, *options)
        assert server.wait(seconds) == 0, self.read("server.log") + self.read("ipi.log")
        assert ipi.wait(seconds) == 0, self.read("ipi.log")
        return self.read("server.log")

    def wait_until(self, condition: Callable[[], bool], file: str, seconds: float = 60.0) -> None:
        """Wait until a file is there and a condition on it holds; what it says then depends on no sleep."""
        end = time.monotonic() + seconds
        while not ((self.path / file).exists() and condition()):
            assert time.monotonic() < end, f"{file} did not get there in {seconds} s"
            time.sleep(0.02)

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def workplace() -> Iterator[Workplace]:
    place = Workplace(Path(tempfile.mkdtemp(prefix="fs-")))
    try:
        yield place
    finally:
        place.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def served(log: str) -> Sequence[str]:
    """The line of the log that counts requests, in parts."""
    line = next(line for line in log.splitlines() if "force requests:" in line)
    return line.split("force requests: ")[1].split(", ")
