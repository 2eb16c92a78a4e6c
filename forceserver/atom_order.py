"""Whether i-PI holds its atoms in the order of the template: positions come without names, so a model would believe anything.

Units: angstrom. It can be told only where i-PI starts from the same geometry as the template; elsewhere nothing is said.
"""

from __future__ import annotations

import numpy as np

from forceserver.errors import UsageError
from forceserver.exchange import Template
from forceserver.structures import Structure

SAME_PLACE = 1e-2  # A; structure files keep two digits and more


def check_order(template: Template, structure: Structure) -> None:
    """Refuse the first structure of a run that is the template with other species in its places.

    Raises:
        UsageError: names the first atom that is another.
    """
    if template.positions is None or len(template.positions) != structure.n_atoms:
        return
    from scipy.spatial import cKDTree

    distances, nearest = cKDTree(template.positions).query(structure.positions)
    if distances.max() > SAME_PLACE:
        return
    theirs = template.atomic_numbers[nearest]
    wrong = np.flatnonzero(theirs != template.atomic_numbers)
    if len(wrong):
        raise UsageError(
            f"i-PI has its atoms in another order than the template: its atom {wrong[0] + 1} stands where the template has atom "
            f"{nearest[wrong[0]] + 1}, of another species ({len(wrong)} such atoms). Start both from the same file"
        )
