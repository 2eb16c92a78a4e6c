"""The linter: what is wrong with an i-PI input, before the hours are spent.

    for finding in lint("input.xml"): print(finding.line, finding.what)

An input that breaks a rule by purpose says so in a comment, `<!-- lint: allow RULE, RULE: why -->`; such findings are left
out, and an allowance that nothing needs, or that gives no reason, is itself a finding.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ipi_inputs.document import InputError, children, find, parse, value_of
from ipi_inputs.facts import InputFacts, System
from ipi_inputs.findings import LEVELS, Case, Finding, Level
from ipi_inputs.judge import judge
from ipi_inputs.reading import read_facts
from ipi_inputs.rules import REFUSED_BY_IPI, RULES
from ipi_inputs.starting import structure_elements

__all__ = ["Finding", "lint", "lint_many"]

ALLOW = re.compile(r"<!--\s*lint:\s*allow\s+(?P<rules>[\w\s,-]+?)\s*(?::(?P<reason>.*?))?-->", re.DOTALL)

CLASHES: Mapping[str, tuple[str, Level, str, str]] = {  # rule, level, why, remedy
    "seed": (
        "same-seed",
        "warning",
        "Replicas with one seed start from the same velocities and feel the same noise: they are one run, not several.",
        "Give every replica its own <seed>.",
    ),
    "folder": (
        "same-folder",
        "warning",
        "Whatever their prefixes, each run overwrites the RESTART of the other, and a file EXIT ends both.",
        "Give every run its own folder.",
    ),
    "output": (
        "same-outputs",
        "error",
        "Both runs would write the same files.",
        "Give every run its own folder, and its own prefix where that names another one.",
    ),
    "socket": (
        "socket-collision",
        "error",
        "The second to open the address fails, or a force server serves the wrong run.",
        "Give every run on one machine its own <address> or sockets_prefix.",
    ),
}


def lint(
    source: str | Path,
    *,
    folder: Path | None = None,
    default_forces: str = "",
    keeps_net_force: bool = False,
) -> list[Finding]:
    """Everything that is wrong with one input, the worst first.

    Args:
        source: the path of an XML input, or its text (which then begins with "<").
        folder: where file names inside the input start from; default: the folder of the file.
        default_forces: of the sockets that do not say: conservative, direct, blended; "": unknown.
        keeps_net_force: whether the force server will run with `--net-force keep`.

    Raises:
        InputError: the file cannot be read, or is no XML at all.
    """
    text, base = _text_and_folder(source)
    case = _case(text, folder or base, default_forces, keeps_net_force)
    found = dict.fromkeys(finding for rule in RULES for finding in rule.findings(case))
    return _sorted(_without_echoes(_apply_allowances(text, list(found))))


def lint_many(
    paths: Iterable[str | Path], *, default_forces: str = "", keeps_net_force: bool = False
) -> dict[Path, list[Finding]]:
    """Lint inputs that are meant to run side by side: they need sockets and a folder of their own, replicas a seed."""
    files = [Path(path) for path in paths]
    findings = {
        path: lint(path, default_forces=default_forces, keeps_net_force=keeps_net_force) for path in files
    }
    facts = {path: read_facts(parse(path.read_text())) for path in files}
    for path, extra in _clashes(facts):
        findings[path].append(extra)
    return {path: _sorted(found) for path, found in findings.items()}


def _text_and_folder(source: str | Path) -> tuple[str, Path]:
    if isinstance(source, str) and source.lstrip().startswith("<"):
        return source, Path()
    path = Path(source)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if text.lstrip().startswith("{"):
        raise InputError(
            f"{path} looks like JSON; the linter reads XML, `i-pi-convert-input` turns one into the other"
        )
    return text, path.parent


def _case(text: str, folder: Path, default_forces: str, keeps_net_force: bool) -> Case:
    facts = read_facts(parse(text), default_forces=default_forces)
    try:
        judgement = judge(text, folder)
    except InputError as error:
        return Case(facts, folder, str(error), {}, keeps_net_force)
    return Case(facts, folder, "", judgement.masses_amu, keeps_net_force)


def _without_echoes(found: list[Finding]) -> list[Finding]:
    """i-PI's refusal says nothing new where a rule already gives the reason."""
    explained = any(finding.rule in REFUSED_BY_IPI for finding in found)
    return [finding for finding in found if not (explained and finding.rule == "not-accepted")]


def _apply_allowances(text: str, found: list[Finding]) -> list[Finding]:
    broken = {finding.rule for finding in found}
    allowed: set[str] = set()
    complaints = []
    for match in ALLOW.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        rules = [rule.strip() for rule in match["rules"].split(",")]
        allowed.update(rules)
        unused = [rule for rule in rules if rule not in broken]
        if unused:
            complaints.append(_allowance(line, f"nothing here breaks {', '.join(unused)}"))
        if not (match["reason"] or "").strip():
            complaints.append(_allowance(line, "an allowance without a reason"))
    return [finding for finding in found if finding.rule not in allowed] + complaints


def _allowance(line: int, what: str) -> Finding:
    return Finding(
        "allowance", "warning", line, what,
        "An allowance that is not needed will one day hide a mistake.",
        "Write <!-- lint: allow RULE: why --> for rules that are broken by purpose, and nothing more.",
        "ipi_inputs/README.md",
    )  # fmt: skip


def _clashes(facts: Mapping[Path, InputFacts]) -> Iterator[tuple[Path, Finding]]:
    """What two inputs must not share, told for the later one."""
    seen: defaultdict[tuple[str, object], list[Path]] = defaultdict(list)
    for path, each in facts.items():
        for kind, value, what, line in _marks(path, each):
            if seen[kind, value]:
                rule, level, why, remedy = CLASHES[kind]
                shared = f"{kind} {what}, as in {seen[kind, value][0]}"
                yield path, Finding(rule, level, line, shared, why, remedy, "i-PI manual, input tags")
            seen[kind, value].append(path)


def _marks(path: Path, facts: InputFacts) -> Iterator[tuple[str, object, str, int]]:
    """Kind, value, the value in words, line: of all that one run must have for itself."""
    root = facts.document.root
    seed, output = find(root, "prng/seed"), find(root, "output")
    if seed is not None and any(system.motion == "dynamics" for system in facts.systems):
        yield "seed", (facts.seed, _what_runs(facts, path.parent)), value_of(seed), seed.line
    folder, line = path.parent.resolve(), (root if output is None else output).line
    yield "folder", folder, str(folder), line
    outputs = (folder / facts.prefix).resolve()
    yield "output", outputs, str(outputs), line
    for socket in facts.sockets:
        if socket.mode:
            listens = socket.endpoint(facts.sockets_prefix)
            yield "socket", listens, listens, socket.element.line


def _what_runs(facts: InputFacts, folder: Path) -> object:
    """Equal for inputs that are replicas of one another."""
    return tuple(
        (
            system.motion, system.ensemble, system.splitting, system.barostat, system.timestep_fs, system.nmts,
            system.n_beads, system.temperature_K, system.pressure_GPa, _starts_from(system, folder),
            tuple((thermostat.mode, thermostat.tau_fs) for thermostat in system.thermostats),
            tuple((component.forces, component.weight, component.n_beads) for component in system.components),
        )
        for system in facts.systems
    )  # fmt: skip


def _starts_from(system: System, folder: Path) -> tuple[tuple[str, object], ...]:
    """What is read or written out at the start, by its tag; copies of a structure count as one."""
    read = {node: folder / value_of(node) for node in structure_elements(system.element)}
    return tuple(
        (node.tag, read[node].read_bytes() if node in read and read[node].is_file() else value_of(node))
        for node in children(find(system.element, "initialize"))
    )


def _sorted(found: list[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: (LEVELS.index(finding.level), finding.line, finding.rule))
