from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InputError
from confide.planning import EntryCounts


def _file(folder: Path, text: str) -> Path:
    path = folder / "counts.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_and_a_mapping_say_the_same(tmp_path: Path) -> None:
    path = _file(tmp_path, "\ufeffcontributors, entries\n900,1\n\n 100 , 2\n")
    assert EntryCounts.of(path) == EntryCounts.of(str(path)) == EntryCounts.of({2: 100, 1: 900.0})
    assert EntryCounts.of(path).total_entries == 1100


def test_levels_come_with_the_counts(tmp_path: Path) -> None:
    counts = EntryCounts.of(_file(tmp_path, "entries,budget,contributors\n1,4,10\n1,2,5\n3,2,1\n"))
    assert counts.levels == (2.0, 4.0)
    assert counts == EntryCounts.of({(1, 4): 10, (1, 2): 5, (3, 2): 1})


@given(
    st.dictionaries(st.integers(1, 60), st.integers(1, 50), min_size=1, max_size=12),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
)
def test_percentiles_are_those_of_the_people(counts: dict[int, int], share: float) -> None:
    people = np.sort(np.repeat(list(counts), list(counts.values())))
    expected = np.quantile(people, share, method="inverted_cdf")
    assert EntryCounts.of(counts).percentile(share) == expected


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("entries,contributors\n1,5\n2,3\n1,4\n", "counted twice", "line 4"),
        ("entries,contributors\n1,-5\n", "-5 contributors", "line 2"),
        ("entries,contributors\n1,2.5\n", "2.5 contributors", "line 2"),
        ("entries,contributors\n0,5\n", "0 entries", "line 2"),
        ("entries,contributors\n1.5,5\n", "1.5 entries", "line 2"),
        ("entries,contributors\n1,many\n", "'many'", "line 2"),
        ("entries,contributors\n1,nan\n", "'nan'", "line 2"),
        ("entries,contributors\n1,5,6\n", "3 cells", "line 2"),
        ("entires,contributors\n1,5\n", "did you mean 'entries'", "line 1"),
        ("entries\n1\n", "'contributors' is missing", "counts.csv"),
        ("entries,entries,contributors\n1,1,2\n", "there twice", "counts.csv"),
        ("entries,contributors\n", "no contributors", "counts.csv"),
        ("entries,contributors\n3,0\n", "no contributors", "counts.csv"),
        ("", "missing", "counts.csv"),
        ("entries,budget,contributors\n1,0,2\n", "budget of 0", "line 2"),
        ("entries,budget,contributors\n1,,2\n", "budget is ''", "line 2"),
    ],
)
def test_a_wrong_file_says_what_and_where(tmp_path: Path, text: str, message: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        EntryCounts.of(_file(tmp_path, text))
    assert message in str(caught.value) and line in str(caught.value)


def test_other_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        EntryCounts.of(tmp_path / "absent.csv")
    (tmp_path / "image.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="UTF-8"):
        EntryCounts.of(tmp_path / "image.csv")
    with pytest.raises(InputError, match="a list"):
        EntryCounts.of([1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="negative noisy counts"):
        EntryCounts.of({1: -0.5}, kind="paid")
    with pytest.raises(InputError, match="some do not"):
        EntryCounts.of({1: 5, (2, 4.0): 3})
