"""Tables on disk give the answers that tables in memory give."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from synthesis_panels import random_panel

from confide.errors import InputError
from confide.mechanisms import SeededNoise
from confide.synthesis import FlatTree, Meter, PatientUnit, StreamedPanel


def on_disk(panel, folder, block=5):
    names = [column.name for column in panel.domain.static]
    patients = pl.DataFrame(panel.static, schema=names).with_columns(visits=pl.Series(panel.counts))
    patients.write_parquet(folder / "patients.parquet")
    pl.DataFrame(panel.visit, schema=[c.name for c in panel.domain.visit]).write_parquet(folder / "visits.parquet")
    return StreamedPanel(panel.domain, folder / "patients.parquet", folder / "visits.parquet", block=block)


@pytest.mark.parametrize("method", [PatientUnit(structure="none"), PatientUnit(), FlatTree(cap=3.0)], ids=str)
def test_streamed_and_in_memory_answers_are_the_same(method, tmp_path):
    panel = random_panel(np.random.default_rng(4), patients=23)
    meters = [Meter(epsilon=3.0, delta=1e-5, noise=SeededNoise(0), record=True) for _ in range(2)]
    for meter, data in zip(meters, (panel, on_disk(panel, tmp_path)), strict=True):
        method.fit(data, meter)
    for a, b in zip(meters[0].looks, meters[1].looks, strict=True):
        np.testing.assert_allclose(a.exact, b.exact, atol=1e-9)
        assert a.sensitivity == b.sensitivity


def test_files_that_do_not_fit_are_refused(tmp_path):
    panel = random_panel(np.random.default_rng(4), patients=23)
    streamed = on_disk(panel, tmp_path)
    assert repr(streamed) == "StreamedPanel(private)"
    pl.read_parquet(tmp_path / "visits.parquet").head(3).write_parquet(tmp_path / "visits.parquet")
    with pytest.raises(InputError, match="fewer rows"):
        list(streamed.blocks(4))
    pl.DataFrame({"x": [1.5]}).write_parquet(tmp_path / "patients.parquet")
    with pytest.raises(InputError, match="no column of codes"):
        StreamedPanel(panel.domain, tmp_path / "patients.parquet", tmp_path / "visits.parquet")
