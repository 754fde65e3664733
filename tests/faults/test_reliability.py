"""The page of faults is that of the tests' markers."""

import pytest
from conftest import ROOT

from . import reliability

SOURCE = """
import pytest

pytestmark = [pytest.mark.slow]


@pytest.mark.fault("lake", "a pipe | in "
                           "two strings", "told")
@pytest.mark.fault("data", "also", "refused")
@pytest.mark.parametrize("case", [pytest.param(1, marks=pytest.mark.long)])
def test_of_all(case): ...


@pytest.mark.fault("training", "it dies", "it goes on")
@pytest.mark.long
def test_of_minutes(): ...


def test_of_nothing(): ...
"""


def test_the_page_is_that_of_the_tests():
    assert reliability.markdown() == (ROOT / "docs/reliability.md").read_text(), (
        "run: python tests/faults/reliability.py > docs/reliability.md"
    )


def test_markers_are_read_from_sources():
    found = [(fault.family, fault.event, fault.test, fault.run) for fault in reliability.of_file("a.py", SOURCE)]
    assert found == [
        ("lake", "a pipe | in two strings", "a.py::test_of_all", "whole"),
        ("data", "also", "a.py::test_of_all", "whole"),
        ("training", "it dies", "a.py::test_of_minutes", "long"),
    ]


@pytest.mark.parametrize(
    "arguments", ['"lake", "one"', '"lake", NAME, "two"', '"lakes", "one", "two"', '"lake", "", ""']
)
def test_a_marker_of_another_form_is_refused(arguments):
    with pytest.raises(ValueError, match="a.py:1: "):
        reliability.of_file("a.py", f"@pytest.mark.fault({arguments})\ndef test_a(): ...")


def test_every_family_has_faults_and_no_line_stands_twice():
    lines = [(fault.family, fault.event, fault.promise) for fault in reliability.faults()]
    assert len(lines) == len(set(lines))
    assert {family for family, *_ in lines} <= reliability.FAMILIES.keys()


def test_a_cell_holds_its_pipes(monkeypatch):
    monkeypatch.setattr(reliability, "faults", lambda: reliability.of_file("a.py", SOURCE))
    assert "| a pipe \\| in two strings | told | `tests/a.py::test_of_all` | whole |" in reliability.markdown()
