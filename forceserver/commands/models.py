"""`forceserver models`: what can be served, and what each needs."""

from __future__ import annotations

from importlib.util import find_spec

import rich_click as click

# The schemes of `forceserver.potentials.LOADERS`, as a user writes them, and what they are.
SCHEMES: dict[str, tuple[str, str]] = {
    "metatomic": ("FILE.pt", "a file exported with metatomic, for example by `mtt export`"),
    "ase": ("ase:MODULE:CLASS", "any ASE calculator, KEY=VALUE its arguments"),
    "qtip4pf": ("qtip4pf", "flexible water in closed form, q-TIP4P/F"),
    "lj": ("lj:epsilon=0.0104", "Lennard-Jones"),
    "lennard_jones": ("lennard_jones", "the same by its full name"),
    "harmonic": ("harmonic:k=2.0", "a trap at the origin"),
    "noop": ("noop", "zero forces: what the conversation alone costs"),
}


@click.command()
def models() -> None:
    """List what stands for MODEL: the models that come with this package, and the kinds that can be loaded."""
    from forceserver.models import BUNDLED
    from forceserver.potentials import LOADERS

    for model in BUNDLED.values():
        lacks = "" if model.is_present else "; its file is missing: install forceserver again"
        click.echo(f"{model.name:20s}{model.summary}{lacks or _lacking(model.scheme)}")
    click.echo()
    for scheme in LOADERS:
        written, summary = SCHEMES.get(scheme, (f"{scheme}:...", "see the README"))
        click.echo(f"{written:20s}{summary}{_lacking(scheme)}")


def _lacking(scheme: str) -> str:
    """How to install what a scheme needs and this environment lacks."""
    from forceserver.potentials import EXTRAS

    extra = EXTRAS.get(scheme)
    if extra is None or find_spec(extra) is not None:
        return ""
    return f'; needs pip install "forceserver[{extra}]"'
