"""docs/reliability.md: a table of the tests that are marked `fault`, out of their sources, of which nothing is run.

python tests/faults/reliability.py > docs/reliability.md
"""

import ast
import dataclasses
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
FAMILIES = {
    "training": "Training",
    "lake": "The lake",
    "data": "Data",
    "orchestration": "Orchestration",
}
HEAD = """# Reliability

What goes wrong in practice, and what is promised then. Each line is a test that does the damage for real: it sends
signals, fills disks, cuts files and connections, moves clocks. All end alike: nothing is lost, nothing half-written
reads as whole, and a job goes on from where it was or refuses with one clear error.

The last column says which suite runs the test: all of them on every change but those that are `long`, which
`uv run pytest -m long` runs; CONTRIBUTING.md says more. This page is made from the tests.
"""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One line of the table: a marker of a test."""

    family: str
    event: str
    promise: str
    test: str  # file::name
    run: str  # "quick", "whole" or "long"


def faults() -> list[Fault]:
    """The faults of all tests, file by file. `ValueError` where a marker is not three strings, the first a family."""
    files = sorted(TESTS.rglob("test_*.py"), key=lambda path: path.relative_to(TESTS).as_posix())
    return [fault for path in files for fault in of_file(path.relative_to(TESTS).as_posix(), path.read_text())]


def of_file(name: str, source: str) -> list[Fault]:
    """The faults of one file of tests."""
    tree = ast.parse(source)
    marks_of_all = [node.value for node in tree.body if isinstance(node, ast.Assign) and _is_pytestmark(node)]
    return [
        Fault(*_strings(name, mark), test=f"{name}::{test.name}", run=_run([*test.decorator_list, *marks_of_all]))
        for test in tree.body
        if isinstance(test, ast.FunctionDef)
        for mark in test.decorator_list
        if isinstance(mark, ast.Call) and _name(mark.func) == "pytest.mark.fault"
    ]


def _is_pytestmark(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)


def _name(node: ast.expr) -> str:
    return ast.unparse(node)


def _strings(name: str, mark: ast.Call) -> list[str]:
    values = [argument.value if isinstance(argument, ast.Constant) else None for argument in mark.args]
    if len(values) != 3 or mark.keywords or not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"{name}:{mark.lineno}: expected fault(family, what happens, what is promised), three strings")
    if values[0] not in FAMILIES:
        raise ValueError(f"{name}:{mark.lineno}: {values[0]!r} is none of {', '.join(FAMILIES)}")
    return values


def _run(marks: list[ast.expr]) -> str:
    """In which suite a test with these marks is run, lists of marks among them."""
    names = {
        _name(mark) for entry in marks for mark in (entry.elts if isinstance(entry, (ast.List, ast.Tuple)) else [entry])
    }
    if "pytest.mark.long" in names:
        return "long"
    return "whole" if "pytest.mark.slow" in names else "quick"


def markdown() -> str:
    """The page."""
    lines, everything = [HEAD], faults()
    for family, title in FAMILIES.items():
        lines += [f"## {title}", "", "| what happens | what is promised | test | run |", "|---|---|---|---|"]
        for fault in everything:
            if fault.family == family:
                cells = (fault.event, fault.promise, f"`tests/{fault.test}`", fault.run)
                lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
