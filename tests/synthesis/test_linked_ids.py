"""A declared table of ids that are one person holds for synthetic tables as for training."""

from __future__ import annotations

import pytest
from wards import STUDY, write_ward

from confide.accounting import Gaussian
from confide.errors import InputError
from confide.ledger import Ledger
from confide.studies.synthesis_run import load_synthesis, run_synthesis
from confide.synthesis.coding import read_coded

PERSONS = STUDY.replace('contributor = "id"\n', 'contributor = "id"\npersons = "persons.csv"\n').replace(
    "[patients]\n", "[patients]\nrepeated = true\n"
)


@pytest.fixture
def ward(tmp_path):
    write_ward(tmp_path, PERSONS)
    (tmp_path / "persons.csv").write_text("id,person\np000,p001\np002,anna-7\n")
    return tmp_path


def test_two_ids_of_one_person_are_one_contributor_of_synthetic_tables(ward):
    study, _ = load_synthesis(ward / "study.toml")
    coded = read_coded(study, base=ward)
    ids = coded.ids.tolist()
    assert len(ids) == 149 and "anna-7" in ids and not {"p000", "p002"} & set(ids)
    assert coded.panel.counts[ids.index("p001")] == 6


def test_they_are_charged_once_and_the_certificate_says_how_they_were_linked(ward):
    url = f"sqlite:///{ward}/l.sqlite"
    Ledger.create(url, cap_epsilon=2.5, cap_delta=1e-4).close()
    path = ward / "study.toml"
    linkage = (
        run_synthesis(path, accept=lambda lines: None, ledger_url=url, output=ward / "releases")
    ).release.certificate.linkage
    with Ledger.open(url) as ledger:
        assert ledger.status().contributors == 149 and not ledger.remaining("p000").known
    assert linkage is not None and linkage.method == "table" and "visits.csv" in linkage.rule


def test_a_chain_of_persons_is_refused(ward):
    (ward / "persons.csv").write_text("id,person\np000,p001\np001,p002\n")
    study, _ = load_synthesis(ward / "study.toml")
    with pytest.raises(InputError, match="somebody else"):
        read_coded(study, base=ward)
    (ward / "persons.csv").write_text("id,person\np000,p001\np001,p001\n")
    assert len(read_coded(study, base=ward).ids) == 149


def test_an_id_that_was_charged_is_not_replaced_by_somebody_without_spend(ward):
    url = f"sqlite:///{ward}/l.sqlite"
    with Ledger.create(url, cap_epsilon=2.5, cap_delta=1e-4) as ledger:
        ledger.commit(
            ledger.reserve(
                release="before", contributors=["p002"], class_of=[0], classes=[Gaussian(3.0).guarantee()], data_set="x"
            ).id,
            release_hash="0" * 64,
        )
        before = ledger.used(["p002", "anna-7"])
    assert before[0] > 0 and before[1] == 0
    with pytest.raises(InputError, match="charged under their own name"):
        run_synthesis(ward / "study.toml", accept=lambda lines: None, ledger_url=url)
    with Ledger.open(url) as ledger:
        assert len(ledger.reservations()) == 1
    (ward / "persons.csv").write_text("id,person\np000,p001\nanna-7,p002\n")
    run_synthesis(ward / "study.toml", accept=lambda lines: None, ledger_url=url)
