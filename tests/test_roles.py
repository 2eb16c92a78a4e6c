"""Roles and addresses: the words of a user, and whether a model can fill a role."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from forceserver.errors import (
    UsageError,
)
from forceserver.evaluate import Evaluator, VirialSource
from forceserver.exchange import Template
from forceserver.inputfile import SimulationInput, SocketSpec
from forceserver.preflight import check_role, lacks_virial
from forceserver.report import describe_start
from forceserver.roles import parse_forces_option, parse_role
from forceserver.structures import ForceRole
from forceserver.transport import UnixAddress, parse_address
from spring import Spring

PERIODIC = Template(np.array([1]), np.ones(3, dtype=bool))


def test_a_model_without_a_direct_stress_is_refused_where_somebody_reads_the_virial() -> None:
    npt = SocketSpec("s", UnixAddress("/x"), {}, 1, 1, PERIODIC, virial_readers=("the npt ensemble",))
    models = {"default": Spring(direct_virial=False)}
    with pytest.raises(UsageError, match=r"the npt ensemble reads it.*--virial conservative"):
        check_role(ForceRole(1.0), npt, models)
    check_role(ForceRole(1.0), npt, models, "conservative")
    check_role(ForceRole(0.0), npt, models)
    check_role(ForceRole(1.0), replace(npt, virial_readers=()), models)


@pytest.mark.parametrize(
    ("role", "virial", "conservative_virial", "direct_virial", "lacks"),
    [
        (0.0, "own", True, False, False),
        (0.0, "own", False, True, True),
        (1.0, "own", False, True, False),
        (1.0, "own", True, False, True),
        (1.0, "none", True, True, True),
        (1.0, "conservative", True, False, False),
        (0.5, "own", True, True, False),
        (0.5, "own", False, True, True),
        (0.5, "own", True, False, True),
        (0.5, "none", True, True, True),
        (0.5, "conservative", True, False, False),
    ],
)
def test_blended_forces_need_the_virials_of_both_kinds(
    role: float, virial: VirialSource, conservative_virial: bool, direct_virial: bool, lacks: bool
) -> None:
    capabilities = replace(
        Spring().capabilities, conservative_virial=conservative_virial, direct_virial=direct_virial
    )
    assert lacks_virial(ForceRole(role), capabilities, virial, PERIODIC) == lacks
    for pbc in ([True, True, False], [False, False, False]):
        part_periodic = Template(np.array([1]), np.array(pbc))
        assert lacks_virial(ForceRole(role), capabilities, virial, part_periodic) == lacks
        of_stress = replace(capabilities, direct_virial_wants_volume=True)
        needs_own = role > 0.0 and virial == "own"
        assert lacks_virial(ForceRole(role), of_stress, virial, part_periodic) == (lacks or needs_own)
        assert lacks_virial(ForceRole(role), of_stress, virial, PERIODIC) == lacks


@pytest.mark.parametrize("periodic", [(True, True, True), (True, True, False)])
def test_that_a_slab_gets_no_direct_virial_is_said_at_the_start(periodic: tuple[bool, bool, bool]) -> None:
    spring = Spring()
    spring.capabilities = replace(spring.capabilities, direct_virial_wants_volume=True)
    spec = SocketSpec("slab", UnixAddress("/x"), {}, 1, 1, Template(np.array([1]), np.array(periodic)))
    lines = describe_start(
        [SimulationInput(None, (spec,))],
        [{"slab": ForceRole(1.0)}],
        Evaluator({"default": spring}),
        keep_net_force=False,
    )
    said = "socket 'slab': no virial comes with its forces; zeros are sent in its place"
    assert (said in "\n".join(lines)) == (not all(periodic))


@pytest.mark.parametrize(
    ("parameters", "role"),
    [
        ({}, ForceRole(0.5)),
        ({"forces": "direct"}, ForceRole(1.0)),
        ({"forces": "conservative"}, ForceRole(0.0)),
        ({"forces": "blended", "direct_fraction": "0.25"}, ForceRole(0.25)),
        ({"model": "fast"}, ForceRole(0.5, "fast")),
    ],
)
def test_parameters_say_the_role_and_the_default_fills_in(
    parameters: dict[str, str], role: ForceRole
) -> None:
    assert parse_role(parameters, ForceRole(0.5), frozenset({"default", "fast"})) == role


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"forces": "dirct"}, "did you mean 'direct'"),
        ({"forces": "blended"}, "needs 'direct_fraction: X'"),
        ({"forces": "direct", "direct_fraction": "0.3"}, "'forces: blended' only"),
        ({"direct_fraction": "0.3"}, "without 'forces: blended'"),
        ({"forces": "blended", "direct_fraction": "1.5"}, "between 0 and 1"),
        ({"model": "slow"}, "--also slow=MODEL"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(parameters: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_role(parameters, ForceRole(), frozenset({"default"}))


def test_the_forces_option_has_three_forms() -> None:
    assert parse_forces_option("direct") == ForceRole(1.0)
    assert parse_forces_option("blended:0.3") == ForceRole(0.3)
    for bad in ("blended", "blended:x", "both", "direct:0.3"):
        with pytest.raises(UsageError):
            parse_forces_option(bad)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("water", "/tmp/ipi_water"),
        ("/run/me/s", "/run/me/s"),
        ("node3:31415", "node3:31415"),
        (":31415", "localhost:31415"),
    ],
)
def test_addresses_are_names_paths_or_hosts(text: str, address: str) -> None:
    assert str(parse_address(text, "/tmp/ipi_")) == address
    for bad in ("host:port", "host:0", "host:70000", "host:"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            parse_address(bad, "")
