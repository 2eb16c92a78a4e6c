"""The i-PI input that the benchmarks share: 64 water molecules under a force provider that computes nothing."""

from __future__ import annotations

from pathlib import Path

WATER64 = Path(__file__).parents[1] / "ipi_inputs" / "water64.xyz"
ENDLESS = 10**9  # steps
IPI_LATENCY = 1e-4  # s, i-PI's default; the inputs of `ipi_inputs` say 1e-3
INPUT = """<simulation verbosity="medium" sockets_prefix="{folder}/s_">
  <output prefix="out"><properties stride="{output_stride}" filename="out"> [ step, conserved ] </properties></output>
  <total_steps>{steps}</total_steps>
  <ffsocket name="ff" mode="{mode}" pbc="false">
    <address>{address}</address><port>{port}</port><batch_size>{batch_size}</batch_size><latency>{latency}</latency>
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


def write_input(
    folder: Path,
    *,
    steps: int,
    mode: str = "unix",
    port: int = 31415,
    n_beads: int = 1,
    batch_size: int = 1,
    output_stride: int = 100,
    latency: float = IPI_LATENCY,
) -> Path:
    """Write `input.xml` into a folder, in which its unix socket `s_ff` will stand too; an inet socket is on localhost."""
    path = folder / "input.xml"
    path.write_text(
        INPUT.format(
            folder=folder, steps=steps, mode=mode, address="localhost" if mode == "inet" else "ff", port=port,
            batch_size=batch_size, n_beads=n_beads, structure=WATER64, output_stride=output_stride,
            latency=latency,
        )
    )  # fmt: skip
    return path
