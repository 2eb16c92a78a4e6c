"""From i-PI's output files to a verdict on drift, thermostat artifacts and path-integral consistency.

    from analysis import read_run
    from analysis.drift import energy_drift
    from analysis.kinetics import species_temperatures

    run = read_run("my-run")          # directory, input.xml or prefix of outputs
    print(energy_drift(run))          # 3.41(12) meV/ps/atom
    print(species_temperatures(run))  # {"O": ..., "H": ...}

Base units: eV, angstrom, ps, amu, K.
"""

from analysis.run import Run, read_run
from analysis.series import Series
from analysis.statistics import Estimate

__all__ = ["Estimate", "Run", "Series", "read_run"]
