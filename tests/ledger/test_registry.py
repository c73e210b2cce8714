"""Releases in the schema of the public registry."""

from __future__ import annotations

import json

import pytest

from confide.errors import InputError
from confide.ledger import Deployment, deployment_of

from .conftest import take

FACTS = {
    "curators": ["University hospital"],
    "description": "A classifier of chest X-rays",
    "intended_use": "Research",
    "product_type": "Machine learning model",
    "region": "EU",
    "authors": ["Data protection officer"],
}


@pytest.fixture
def committed(new):
    ledger = new()
    kept = take(ledger, ["a", "b"], 0.5, release="Chest model")
    ledger.commit(kept.id, release_hash="ab" * 32)
    return ledger, kept.id


def test_a_release_goes_out_and_comes_in(committed, tmp_path):
    ledger, which = committed
    made = deployment_of(ledger, which, **FACTS)
    assert (
        made.epsilon == pytest.approx(ledger.remaining("a").epsilon) and made.delta == 1e-6 and made.model == "Central"
    )
    made.write(tmp_path / "record.yaml")
    record = json.loads((tmp_path / "record.yaml").read_text())
    assert record["tier"] == 3 and record["deployment"]["privacy_loss"]["privacy_parameters"]["delta"] == 1e-6
    assert record["url_slug"].startswith("chest-model-university-hospital-2")
    assert Deployment.read(tmp_path / "record.yaml") == made
    # Nothing in it depends on who is in the data: the same for one person more.
    more = take(ledger, ["a", "b", "c"], 0.5, release="Chest model")
    ledger.commit(more.id, release_hash="ab" * 32)
    again = deployment_of(ledger, more.id, **FACTS)
    assert again.to_record() == made.to_record()


def test_a_yaml_record_as_the_registry_has_them(tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "r.yaml").write_text(
        """url_slug: wages-2024
status: Approved
tier: 2
deployment:
  basic:
    name: Wages
    data_curators: [Statistics office]
    intended_use: Policy
    data_product_type: Summary statistics
    data_product_region: Elsewhere
    description: Means by region
    publication_date: '2024-05-01'
  dp_variant: {variant_name: Pure DP}
  privacy_loss:
    privacy_unit: Person
    privacy_parameters: {epsilon: 2.0, delta: negligible}
"""
    )
    found = Deployment.read(tmp_path / "r.yaml")
    assert (found.epsilon, found.delta, found.variant, found.status) == (2.0, None, "Pure DP", "Approved")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("tier"),
        lambda r: r.update(tier=4),
        lambda r: r.update(status="Fine"),
        lambda r: r.update(more=1),
        lambda r: r["deployment"].update(surprise={}),
        lambda r: r["deployment"]["basic"].update(surprise=1),
        lambda r: r["deployment"]["basic"].pop("name"),
        lambda r: r["deployment"]["basic"].update(publication_date="1/1/2026"),
        lambda r: r["deployment"]["basic"].update(data_product_type="Cake"),
        lambda r: r["deployment"]["dp_variant"].update(variant_name="Some DP"),
        lambda r: r["deployment"]["privacy_loss"]["privacy_parameters"].update(mu=1),
    ],
)
def test_what_the_registry_would_refuse(committed, change):
    ledger, which = committed
    record = deployment_of(ledger, which, **FACTS).to_record()
    change(record)
    with pytest.raises(InputError, match="registry"):
        Deployment.from_record(record)


def test_bad_exports(committed, tmp_path):
    ledger, which = committed
    with pytest.raises(InputError, match="region"):
        deployment_of(ledger, which, **{**FACTS, "region": ""}).to_record()
    with pytest.raises(InputError, match="reserved"):
        deployment_of(ledger, take(ledger, ["a"], 0.1).id, **FACTS)
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        Deployment.read(tmp_path / "x")
