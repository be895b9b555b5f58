import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    file.relative_to(ROOT)
    for package in ("appliance", "tui")
    for file in (ROOT / package).rglob("*.py")
)
MOST_LINES = 400
SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base_utils"}


def test_sources_are_found() -> None:
    assert Path("appliance/errors.py") in SOURCES
    assert Path("tui/app.py") in SOURCES


def test_no_module_is_too_long() -> None:
    lengths = {str(file): len((ROOT / file).read_text().splitlines()) for file in SOURCES}
    assert {name: count for name, count in lengths.items() if count > MOST_LINES} == {}


def test_every_module_is_named_for_what_is_in_it() -> None:
    parts = {(str(file), part) for file in SOURCES for part in (file.stem, *file.parent.parts)}
    assert {name for name, part in parts if part in SAY_NOTHING} == set()


def test_every_module_says_why_it_is_there() -> None:
    silent = [
        str(file)
        for file in SOURCES
        if ast.get_docstring(ast.parse((ROOT / file).read_text())) is None
    ]
    assert silent == []


@pytest.mark.parametrize("file", [file for file in SOURCES if file.name == "__init__.py"], ids=str)
def test_packages_hold_a_docstring_and_at_most_the_version(file: Path) -> None:
    docstring, *rest = ast.parse((ROOT / file).read_text()).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    assert isinstance(docstring.value.value, str)
    for statement in rest:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        assert [ast.unparse(target) for target in statement.targets] == ["__version__"]
