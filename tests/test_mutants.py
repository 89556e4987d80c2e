"""Which faults mutation testing puts into a file, and that it finds them out."""

import pytest

from benchmarks import mutants

SOURCE = '''
"""A docstring."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    NUMBER = 1


def limited(values: list[float | None], most: float = 2) -> float:
    shapes = [len(values) + 1]
    if not values:
        raise ValueError(f"{shapes}: got {len(values) - 1}")
    values.sort(reverse=True)
    return max(
        values[0], most
    )
'''

MADE = {
    ("2", "3"),
    ("not values", "True"),
    ("not values", "False"),
    ("not values", "(values)"),
    ("values.sort(reverse=True)", "None"),
    ("values.sort(reverse=True)", "values.sort()"),
    ("True", "False"),
    ("max(\n        values[0], most\n    )", "None"),
    ("0", "1"),
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text(SOURCE)
    return mutants.Mutants("a.py").found


def test_what_is_mutated(made):
    assert {(mutant.before, mutant.after) for mutant in made} == MADE
    assert len({mutant.key for mutant in made}) == len(made) == len(MADE)


def test_a_mutant_is_one_change_and_keeps_the_lines(made):
    for mutant in made:
        changed = mutant.source()
        compile(changed, "a.py", "exec")
        assert changed != SOURCE
        assert changed.count("\n") == SOURCE.count("\n")
        assert changed[: mutant.start] == SOURCE[: mutant.start]
        assert SOURCE.splitlines()[mutant.line - 1].strip() == mutant.place.split(" ", 1)[1].rsplit(" ", 1)[0]


def test_what_runs_on_import_has_no_lines_of_its_own(made):
    lines = {mutant.before: mutant.lines for mutant in made}
    assert lines["0"] == (15, 17)
    assert lines["not values"] == (12, 12)
    # A default is any line's of its function.
    assert lines["2"] == (11, 17)
