"""What a user types, mistypes and reads. Errors: one line, the right exit code, no traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forceserver import cli
from forceserver.accounts import keep_accounts
from forceserver.bookkeeping import ServeStatistics
from forceserver.evaluate import Evaluator
from forceserver.logs import start_logging
from forceserver.openmp import USERS_CHOICES
from real_ipi import BIN, WATER64, Socket, Workplace, free_port, workplace
from spring import Spring


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    with workplace() as place:
        monkeypatch.chdir(place.path)
        yield place


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """`forceserver ARGUMENTS` in this process: the exit code and what stands on stderr."""

    def type_in(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["forceserver", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), capsys.readouterr().err

    return type_in


def test_the_module_is_the_command() -> None:
    """Where the scripts of the environment are not on PATH, and with the name under which everybody knows it."""
    command = [sys.executable, "-m", "forceserver", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Usage: forceserver run" in done.stdout


def test_help_needs_no_torch_and_lists_every_command() -> None:
    code = (
        "import sys; sys.argv = ['forceserver', '--help']\n"
        "from forceserver.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ipi', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for command in cli.COMMANDS:
        assert command in out
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", ["forceserver", "ipi_inputs", "analysis"])
def test_importing_a_package_loads_no_torch(package: str) -> None:
    code = f"import sys, {package}; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_its_own_help(command: str) -> None:
    done = subprocess.run(
        [str(BIN / "forceserver"), command, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


NPT = {"mode": "npt", "dynamics": '<barostat mode="isotropic"><tau units="femtosecond">200</tau></barostat>'}


@pytest.mark.parametrize(
    ("model", "options", "changes", "words"),
    [
        ("nothing.pt", [], {}, "nothing.pt"),
        ("README.pt", [], {}, "metatomic"),
        ("qtip5p", [], {}, "did you mean 'qtip4pf'"),
        ("harmonic:k=stiff", [], {}, "'k' must be a finite number"),
        ("lj", [], {"parameters": "{forces: direct}"}, "wants direct forces"),
        ("qtip4pf", ["--forces", "both"], {}, "unknown forces 'both'"),
        ("noop", [], {"parameters": "{force: direct}"}, "did you mean 'forces'"),
        ("noop", [], {"parameters": "{forces: blended}"}, "direct_fraction"),
        ("noop", [], {"parameters": "{model: other}"}, "--also other=MODEL"),
        ("noop", ["--also", "trap"], {}, "NAME=MODEL"),
        ("noop", ["--also", "default=noop"], {}, "belongs to the first model"),
        ("noop", ["--connections", "0"], {}, "auto or a number"),
        ("noop", ["--device", "cuda:7"], {}, "CUDA devices"),
        ("noop", ["--device", "gpu"], {}, "torch device"),
        ("noop", ["--log-file", "nowhere/log"], {}, "cannot write the log file"),
        ("noop", ["--report", "nowhere/report"], {}, "cannot write the report"),
        ("noop", ["-a", "x"], {}, "give one or the other"),
        ("noop", [], {"forcefields": "<fflj name='forces'/>"}, "has no <ffsocket>"),
        ("ase:ase.calculators.emt:EMT", [], {"parameters": "{forces: direct}"}, "wants direct forces"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line_before_i_pi_is_dialled(
    place: Workplace,
    run: Callable[..., tuple[int, str]],
    model: str,
    options: list[str],
    changes: dict[str, object],
    words: str,
) -> None:
    (place.path / "README.pt").write_text("this is no model")
    parameters = str(changes.pop("parameters", "{}")) if "parameters" in changes else "{}"
    place.write_input(Socket(parameters=parameters), **changes)
    code, said = run("run", model, "-i", "input.xml", *options)
    assert code == 2
    assert words in " ".join(said.split()).replace("│ ", "")
    assert "Traceback" not in said


def test_an_npt_input_is_refused_when_its_forces_have_no_virial(
    place: Workplace, run: Callable[..., tuple[int, str]]
) -> None:
    place.write_input(Socket(parameters="{forces: direct}"), **NPT)
    code, said = run("run", "qtip4pf:direct=0.02", "-i", "input.xml", "--virial", "none")
    assert code == 2
    assert "the npt ensemble reads it" in said
    assert "--virial conservative" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-i", "missing.xml"], "cannot read the i-PI input missing.xml"),
        ([], "which i-PI?"),
        (["-a", "water"], "needs -t TEMPLATE"),
        (["-a", "water", "-t", "missing.xyz"], "missing.xyz"),
        (["-a", "host:port", "-t", str(WATER64)], "HOST:PORT"),
        (["-a", "no-such-host.invalid:31415", "-t", str(WATER64)], "not found"),
    ],
)
def test_an_address_that_cannot_be_is_refused(
    run: Callable[..., tuple[int, str]], arguments: list[str], words: str
) -> None:
    code, said = run("run", "noop", *arguments)
    assert code == 2
    assert words in said


def test_nobody_listening_is_a_failure_after_the_time_to_wait(run: Callable[..., tuple[int, str]]) -> None:
    code, said = run("run", "noop", "-a", f"localhost:{free_port()}", "-t", str(WATER64), "--wait", "0.2")
    assert code == 1
    assert "nobody listens at localhost:" in said
    assert "Connection refused" in said


def test_a_species_that_the_model_does_not_know_is_named(
    place: Workplace, run: Callable[..., tuple[int, str]]
) -> None:
    other = place.path / "salt.xyz"
    other.write_text(WATER64.read_text().replace("\n   O ", "\n  Na ", 1))
    place.write_input(Socket(), structure=other)
    code, said = run("run", "qtip4pf", "-i", "input.xml")
    assert code == 2
    assert "Na" in said
    assert "it knows H, O" in said


def test_who_asks_for_the_account_too_early_ends_nothing(place: Workplace) -> None:
    """SIGUSR1 kills a process that has made no arrangement, and loading a model takes long."""
    (place.path / "slow_model.py").write_text(
        "import os, signal\nfrom ase.calculators.emt import EMT\nos.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    command = [
        str(BIN / "forceserver"),
        "run",
        "ase:slow_model:EMT",
        "-a",
        "x",
        "-t",
        str(WATER64),
        "--wait",
        "0.1",
    ]
    done = subprocess.run(
        [*command, "--report", "report.json"], cwd=place.path, env=os.environ | {"PYTHONPATH": str(place.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "nobody listens" in done.stderr
    assert json.loads((place.path / "report.json").read_text())["n_requests"] == 0


def test_a_report_that_cannot_be_written_is_said_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging()
    with keep_accounts(Path("/dev/full"), ServeStatistics(), Evaluator({"default": Spring()})):
        os.kill(os.getpid(), signal.SIGUSR1)
    line = "forceserver: cannot write the report /dev/full: No space left on device\n"
    assert capsys.readouterr().err == 2 * line


@pytest.mark.parametrize(
    ("setting", "found"),
    [({}, "1000"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0"), ({"GOMP_SPINCOUNT": "77"}, "77")],
)
def test_threads_of_torch_spin_briefly_unless_the_user_says_how(
    setting: dict[str, str], found: str, place: Workplace
) -> None:
    """Before torch is loaded, or OpenMP does not see it: its own words tell."""
    inherited = {name: value for name, value in os.environ.items() if name not in USERS_CHOICES}
    command = [BIN / "forceserver", "run", "noop", "-a", "nobody", "-t", WATER64, "--wait", "0"]
    told = subprocess.run(
        command,
        env=inherited | setting | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "GOMP_SPINCOUNT" not in told.stderr:
        pytest.skip("this torch does not wait by GNU OpenMP")
    assert f"GOMP_SPINCOUNT = '{found}'" in told.stderr


def test_a_log_file_keeps_every_message(place: Workplace) -> None:
    place.write_input(Socket(), steps=1)
    place.run("noop", "-i", "input.xml", "--log-file", "all.log")
    log = Path(place.path / "all.log").read_text()
    assert "INIT (no parameters; batch size 1)" in log
    assert "POSDATA (1 x 192 atoms)" in log
    assert "served 2 force requests" in log
