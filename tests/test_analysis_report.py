"""The report and the command line: stable keys, one self-contained page, messages without tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

from analysis import read_run
from analysis.assessment import Assessment, assess
from analysis.cli import analyze
from analysis.efficiency import evaluations_per_ps, evaluations_per_sample
from analysis.inputfile import read_facts
from analysis.report import comparison, headline, render_html, words, write_report
from analysis.schema import ReportModel
from analysis.statistics import Estimate
from analysis_runs import (
    Setting,
    clean_columns,
    water_positions,
    water_velocities,
    with_,
    write_clean,
    write_setting,
    write_trajectory,
)

SETTING = Setting()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A sound run and one with a drift under direct forces, both with trajectories."""
    folder = tmp_path_factory.mktemp("runs")
    sound, heating = with_(SETTING, stride=8), with_(SETTING, stride=8, ensemble="nve", role="direct")
    for name, setting in (("sound", sound), ("heating", heating)):
        columns = clean_columns(setting, 2200, 1)
        if name == "heating":
            columns["conserved{electronvolt}"] += 3.5e-3 * 192 * columns["time{picosecond}"]
        write_clean(folder / name, setting, 2200, 1, **columns)
        velocities = water_velocities(setting, 2200, 1)
        write_trajectory(folder / name / "simulation.vel_0.xyz", setting, velocities, "velocities", "a/ps")
        rng = np.random.default_rng(2)
        frames = water_positions(setting) + 0.05 * rng.normal(size=(60, 192, 3))
        write_trajectory(folder / name / "simulation.pos_0.xyz", setting, frames, "positions", "angstrom")
    return folder


@pytest.fixture(scope="module")
def assessed(runs) -> tuple[Assessment, Assessment]:
    sound = assess(read_run(runs / "sound"))
    return sound, assess(read_run(runs / "heating"), sound)


class Page(HTMLParser):
    """Tags that are open, and addresses that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.errors: list[str] = []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.fetched += [
            found[name] for name in ("src", "href", "xlink:href") if name in found and found[name][0] != "#"
        ]
        if tag not in ("meta", "br", "link", "img", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(tag)


def test_page_is_well_formed_and_fetches_nothing(assessed):
    page = Page()
    text = render_html(list(assessed), assessed[0])
    page.feed(text)
    assert (page.errors, page.open, page.fetched) == ([], [], [])
    assert "@import" not in text
    assert "url(http" not in text


def test_page_holds_a_figure_for_all_that_was_measured(assessed):
    text = render_html(list(assessed), assessed[0])
    for title in (
        "Energy balance",
        "Temperature of each species",
        "Who is hot, who is cold",
        "Velocity spectrum",
        "Structure",
    ):
        assert text.count(f"<h3>{title}</h3>") == 2
    assert text.count("<svg") == text.count("<figure>")


def test_figures_take_their_text_colour_from_the_page(assessed):
    text = render_html([assessed[0]])
    assert "currentColor" in text
    assert "#010203" not in text
    assert "prefers-color-scheme: dark" in text


def test_report_json_follows_its_schema_and_is_strict_json(assessed, tmp_path):
    path, _ = write_report(list(assessed), tmp_path, reference=assessed[0])
    data = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    report = ReportModel.model_validate(data)
    assert report.reference == "sound"
    heating = report.runs[1]
    assert heating.status == "fail"
    assert heating.estimates["drift"].unit == "meV/ps/atom"
    assert heating.estimates["drift"].value == pytest.approx(3.5, rel=0.02)
    own = next(verdict for verdict in heating.verdicts if verdict.rule == "drift")
    assert own.attributions[0].cause == "direct forces"
    assert heating.facts is not None
    assert heating.facts.species == {"O": 64, "H": 128}
    assert not list(tmp_path.glob("*.part"))


def test_keys_of_the_report_are_the_documented_ones():
    """Keys may be added; removing or renaming one wants a new schema version."""
    assert set(ReportModel.model_fields) >= {"schema_version", "reference", "runs"}
    run = ReportModel.model_json_schema()["$defs"]
    assert set(run["RunModel"]["properties"]) >= {
        "name", "status", "duration_ps", "facts", "estimates", "verdicts", "gaps",
    }  # fmt: skip
    assert set(run["VerdictModel"]["properties"]) >= {
        "rule", "subject", "title", "status", "deviation", "expected", "sigmas", "warn", "fail", "more_ps", "reference",
        "attributions",
    }  # fmt: skip
    assert set(run["EstimateModel"]["properties"]) == {"value", "error", "unit", "n_effective", "text"}


def test_headline_names_what_is_wrong_or_how_long_to_wait(assessed, tmp_path):
    assert headline(assessed[1]).startswith("Energy is not conserved: off by 3.5")
    short = assess(read_run(write_clean(tmp_path, SETTING, 250)))
    assert "Nothing wrong was found" in headline(short)
    assert "more" in headline(short)


def test_a_run_of_which_nothing_could_be_judged_does_not_pass(tmp_path):
    """Six rows are too few for any error bar; that they are finite is not enough."""
    own = assess(read_run(write_clean(tmp_path, SETTING, 6)))
    assert [verdict.deviation.rule for verdict in own.verdicts] == ["finite"]
    assert own.status == "too short"
    assert headline(own).startswith("Nothing could be judged")


def test_comparison_gives_the_distance_from_the_reference(assessed):
    rows = dict(comparison(list(assessed), assessed[0]))
    (sound, none), (heating, apart) = rows[words("drift")]
    assert none is None
    assert sound is not None
    assert heating is not None
    assert apart is not None
    assert apart > 5
    assert "g_distance.O-O" in assessed[1].measured.estimates
    assert "temperature.band.0-300" in assessed[1].measured.estimates


def test_command_prints_verdicts_and_writes_the_report(runs, tmp_path):
    result = CliRunner().invoke(analyze, [str(runs / "heating"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "energy is not conserved" in result.output
    assert "direct forces" in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.json"}


def test_command_compares_with_a_reference(runs):
    result = CliRunner().invoke(
        analyze, [str(runs / "heating"), "--compare", "--reference", str(runs / "sound")]
    )
    assert result.exit_code == 0, result.output
    assert "side by side" in result.output
    assert "sound (reference)" in result.output


def test_velocities_written_too_rarely_are_a_gap_in_a_comparison(runs, tmp_path):
    setting = with_(SETTING, stride=16)
    path = write_clean(tmp_path / "rare", setting, 1200, 1)
    velocities = water_velocities(setting, 1200, 1)
    write_trajectory(path / "simulation.vel_0.xyz", setting, velocities, "velocities", "a/ps")
    for own, trusted in ((path, runs / "sound"), (runs / "sound", path)):
        result = CliRunner().invoke(analyze, [str(own), "--reference", str(trusted)])
        assert result.exit_code == 0, result.output
        assert "1/cm" not in result.output.split("Not computed")[0]
        assert ("written every 8 fs, too rarely" in result.output) == (own == path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere/at/all"], "no such directory"),
        (["{tmp}"], "no i-PI outputs"),
        (["{run}", "--compare"], "--compare wants at least two runs"),
        (["{tmp}/junk"], "no i-PI outputs"),
        (["{run}", "-o", "{tmp}/junk/report"], "cannot write there (Not a directory)"),
        (["{run}", "--viscosity", "0"], "--viscosity"),
    ],
)
def test_what_cannot_be_read_is_one_message_and_exit_code_2(runs, tmp_path, arguments, message):
    (tmp_path / "junk").write_bytes(bytes(range(256)) * 10)
    filled = [argument.format(tmp=tmp_path, run=runs / "sound") for argument in arguments]
    result = CliRunner().invoke(analyze, filled)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_import_of_the_package_is_light():
    code = "import sys, analysis; print([m for m in ('torch', 'matplotlib', 'scipy', 'ipi', 'pydantic') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_packages_do_not_import_each_other():
    from pathlib import Path

    sources = Path(__file__).parents[1] / "analysis"
    for path in sources.glob("*.py"):
        text = path.read_text()
        assert "import forceserver" not in text
        assert "from forceserver" not in text
        assert "ipi_inputs" not in text


def test_evaluations_are_counted_by_level(tmp_path):
    write_setting(tmp_path, with_(SETTING, mts=8, role="direct", timestep_fs=4.0))
    facts = read_facts(tmp_path / "input.xml")
    assert evaluations_per_ps(facts) == {"conservative": 250.0, "direct": 2000.0}
    memory = Estimate(0.1, 0.01, "ps", 50.0)
    assert evaluations_per_sample(facts, memory, conservative_cost=2.7).value == pytest.approx(
        0.2 * (675 + 2000)
    )
    write_setting(tmp_path, with_(SETTING, role="direct", n_beads=4))
    assert evaluations_per_ps(read_facts(tmp_path / "input.xml")) == {"direct": 8000.0}
