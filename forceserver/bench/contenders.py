"""Who provides the forces: which processes each contender starts for a case, with how many threads, or why it cannot.

Threads. Every contender has the same number of cores for its forces, `--threads`. It divides them among the processes that
compute at the same time: P clients of one socket get a P-th each; the two drivers of multiple time stepping work in turns, so
each gets all. Our server has all of them in one process, and divides them among the structures that it evaluates at the same
time. i-PI itself has one thread, except where it computes the forces itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from forceserver.bench.cases import Case
from forceserver.bench.inputs import STRUCTURE, ForceField
from forceserver.errors import UsageError, suggest
from forceserver.processes import find_program
from forceserver.structures import DIRECT, ForceKind

REPORT = "report.jsonl"  # of our servers, beside their logs
MOST_CLIENTS = 8
SOCKETS = ForceField()
UNREADABLE = ",{}<>&"  # in i-PI's options and inputs


class Unsuitable(Exception):
    """A contender cannot take part in a case; the message says why."""


@dataclass(frozen=True)
class PeerModel:
    """How i-PI's own Python drivers name the model."""

    pes: str
    options: Mapping[str, str] = field(default_factory=dict)

    def parameters(self, kind: ForceKind, device: str) -> dict[str, str]:
        if self.pes == "dummy":
            return {}
        # Any word is true to it, "False" as well: so the flag is given, or not.
        flag = {"non_conservative": "True"} if kind == DIRECT else {}
        return {"template": STRUCTURE, **self.options, "device": device, **flag}


@dataclass(frozen=True)
class Setting:
    """What is the same for all."""

    model: str  # as for `forceserver run`
    peer_model: PeerModel | str  # or why i-PI's drivers cannot serve it
    device: str = "cpu"
    threads: int = 1  # cores for the forces of each contender
    clients: int | None = None  # per socket, where a contender has several; None: by beads and cores

    def n_clients(self, case: Case) -> int:
        """Clients of one socket that share its beads.

        Raises:
            Unsuitable: there is nothing to share, or nobody to share it with.
        """
        count = min(case.n_beads, self.clients or min(self.threads, MOST_CLIENTS))
        if case.n_beads < 2:
            raise Unsuitable("one structure at a time: nothing to share among several")
        if count < 2:
            raise Unsuitable(f"{self.threads} thread for all of them; --clients 2 starts two nevertheless")
        return count


@dataclass(frozen=True)
class Plan:
    """The processes of one contender in one case. `{sim}` in a command is the number of the simulation, from 1.

    Attributes:
        commands: with the simulation whose folder each runs in; 0: the folder above them all.
        threads: of each process that computes.
        n_connections: that each simulation must have before anything is measured.
    """

    force_field: ForceField = SOCKETS
    commands: tuple[tuple[int, tuple[str, ...]], ...] = ()
    threads: int = 1
    n_connections: int = 0
    passes: Sequence[tuple[int, frozenset[ForceKind]]] = ()  # of the bare model, which needs no i-PI
    writes_report: bool = False

    @property
    def is_bare(self) -> bool:
        return bool(self.passes)


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    plan: Callable[[Case, Setting, str], Plan]  # (case, setting, prefix of the unix sockets)
    is_peer: bool = False  # one of i-PI's own ways


def choose_contenders(text: str) -> list[Contender]:
    """Those named in a list with commas; "" for all.

    Raises:
        UsageError: a name that is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()] or list(CONTENDERS)
    for name in names:
        if name not in CONTENDERS:
            raise UsageError(
                f"--contenders: there is no '{name}'{suggest(name, CONTENDERS)}; there are {', '.join(CONTENDERS)}"
            )
    return [contender for name, contender in CONTENDERS.items() if name in names]


def read_peer_model(model: str) -> PeerModel | str:
    """The model in the words of i-PI's drivers, or why they have none for it.

    Raises:
        UsageError: no model has this name.
    """
    from forceserver.models import BUNDLED
    from forceserver.potentials import LOADERS
    from forceserver.potentials.specification import POSITIONAL, parse

    scheme, options = parse(model, schemes=LOADERS, bundled=BUNDLED)
    if scheme == "noop":
        return PeerModel("dummy")
    if scheme != "metatomic":
        return f"i-PI's Python driver serves metatomic files and not '{model}'"
    words = {POSITIONAL: "model", "variant": "energy_variant", "direct_variant": "non_conservative_variant"}
    words |= {"extensions": "extensions", "skin": "skin"}
    unknown = sorted(set(options) - set(words))
    if unknown:
        return f"i-PI's metatomic driver has no option for '{unknown[0]}'"
    path = str(Path(options[POSITIONAL]).resolve())
    if set(path) & set(UNREADABLE):
        return f"i-PI's driver cannot read a path with any of {UNREADABLE} in it: {path}"
    given = {words[key]: value for key, value in options.items() if key != POSITIONAL}
    return PeerModel("metatomic", {"model": path, **given})


def _ours(case: Case, setting: Setting, sockets: str, *options: str) -> Plan:
    """One server for all beads, force fields and simulations."""
    inputs = [word for sim in _simulations(case) for word in ("-i", f"{sim}/input.xml")]
    command = (find_program("forceserver"), "run", setting.model, *inputs, "--device", setting.device)
    return Plan(
        commands=((0, (*command, "--report", REPORT, *options)),),
        threads=setting.threads,
        n_connections=sum(case.most_at_once(kind) for kind in case.kinds),
        writes_report=True,
    )


def _ours_shared(case: Case, setting: Setting, sockets: str) -> Plan:
    """Several servers, each with its share of the beads."""
    n_servers = setting.n_clients(case)
    n_connections = -(-case.n_beads // n_servers)
    one = _ours(case, setting, sockets, "--connections", str(n_connections))
    _, command = one.commands[0]
    without_report = tuple(word for word in command if word not in ("--report", REPORT))
    return Plan(
        commands=((0, without_report),) * n_servers,
        threads=max(1, setting.threads // n_servers),
        n_connections=n_servers * n_connections * len(case.kinds),
    )


def _ours_without_fusion(case: Case, setting: Setting, sockets: str) -> Plan:
    from forceserver.commands.run import run

    if len(case.kinds) < 2:
        raise Unsuitable("one kind of forces: nothing to fuse")
    if not any("--no-fusion" in [*each.opts, *each.secondary_opts] for each in run.params):
        raise Unsuitable("`forceserver run` has no --no-fusion")
    return _ours(case, setting, sockets, "--no-fusion")


def _ours_in_batches(case: Case, setting: Setting, sockets: str) -> Plan:
    """i-PI sends all beads in one message, on one connection."""
    _require_beads(case)
    plan = _ours(case, setting, sockets)
    return replace(plan, force_field=ForceField(in_batches=True), n_connections=len(case.kinds))


def _driver(
    case: Case, setting: Setting, sockets: str, *, n_clients: int = 1, force_field: ForceField = SOCKETS
) -> Plan:
    """i-PI's Python driver: so many for each socket of each simulation."""
    peer = _require_peer(setting)
    program = find_program("i-pi-py_driver")
    shared = ("--shm",) if force_field.mode == "shm" else ("-u",)
    commands = []
    for sim in _simulations(case):
        for kind in case.kinds:
            words = ",".join(f"{key}={value}" for key, value in peer.parameters(kind, setting.device).items())
            command = (program, *shared, "-S", f"{sockets}{sim}-", "-a", kind, "-m", peer.pes)
            commands += [(sim, (*command, "-o", words) if words else command)] * n_clients
    return Plan(
        force_field=force_field,
        commands=tuple(commands),
        threads=max(1, setting.threads // (n_clients * case.n_simulations)),
        n_connections=n_clients * len(case.kinds),
    )


def _drivers(case: Case, setting: Setting, sockets: str) -> Plan:
    _require_peer(setting)
    return _driver(case, setting, sockets, n_clients=setting.n_clients(case))


def _driver_in_batches(case: Case, setting: Setting, sockets: str) -> Plan:
    _require_beads(case)
    return _driver(case, setting, sockets, force_field=ForceField(in_batches=True))


def _driver_in_shared_memory(case: Case, setting: Setting, sockets: str) -> Plan:
    return _driver(case, setting, sockets, force_field=ForceField(mode="shm", in_batches=case.n_beads > 1))


def _direct(case: Case, setting: Setting, sockets: str) -> Plan:
    """The model within i-PI."""
    peer = _require_peer(setting)
    parameters = {
        kind: "{" + ", ".join(f"{k}: {v}" for k, v in peer.parameters(kind, setting.device).items()) + "}"
        for kind in case.kinds
    }
    force_field = ForceField("ffdirect", in_batches=case.n_beads > 1, pes=peer.pes, parameters=parameters)
    return Plan(force_field=force_field, threads=max(1, setting.threads // case.n_simulations))


def _limit(case: Case, setting: Setting, sockets: str) -> Plan:
    return Plan(threads=setting.threads, passes=case.passes())


def _limit_one_by_one(case: Case, setting: Setting, sockets: str) -> Plan:
    passes = [(1, kinds) for count, kinds in case.passes() for _ in range(count)]
    if len(passes) == len(case.passes()):
        raise Unsuitable("one structure at a time, as `limit`")
    return Plan(threads=setting.threads, passes=passes)


def _require_beads(case: Case) -> None:
    if case.n_beads < 2:
        raise Unsuitable("one structure at a time: nothing to batch")


def _require_peer(setting: Setting) -> PeerModel:
    if isinstance(setting.peer_model, str):
        raise Unsuitable(setting.peer_model)
    return setting.peer_model


def _simulations(case: Case) -> range:
    return range(1, case.n_simulations + 1)


CONTENDERS: dict[str, Contender] = {
    each.name: each
    for each in (
        Contender("ours", "forceserver run, one server", _ours),
        Contender("ours-no-fusion", "forceserver run --no-fusion", _ours_without_fusion),
        Contender("ours-batch", "forceserver run with <batch_size>", _ours_in_batches),
        Contender("ours-shared", "several of our servers, each with its share of the beads", _ours_shared),
        Contender("driver", "i-pi-py_driver, one for each socket", _driver, is_peer=True),
        Contender("drivers", "i-pi-py_driver, several for each socket", _drivers, is_peer=True),
        Contender("driver-batch", "i-pi-py_driver with <batch_size>", _driver_in_batches, is_peer=True),
        Contender("driver-shm", "i-pi-py_driver --shm, batched", _driver_in_shared_memory, is_peer=True),
        Contender("ffdirect", "<ffdirect> within i-PI, batched", _direct, is_peer=True),
        Contender("limit", "the model alone, all structures at once", _limit),
        Contender("limit-single", "the model alone, one structure at a time", _limit_one_by_one),
    )
}

BARE = (sys.executable, "-m", "forceserver.bench.bare")
STEPPER = (sys.executable, "-m", "forceserver.bench.stepper")
