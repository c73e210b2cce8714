"""Who receives a release and what for; how people were linked; a wrong ledger is found before anything slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clinic import Clinic

import confide
from confide.contributors import Linkage
from confide.errors import BudgetError, InputError, VerificationError
from confide.ledger import Ledger
from confide.release import verify
from confide.studies import run as runs
from confide.studies.synthesis_run import run_synthesis

ADDRESSED = """
[ledger]
sender = "ward 7"
recipient = "university"
purpose = "research"

[linkage]
method = "table"
rule = "the hospital's master patient index"
"""
TABLES = """
name = "ward"
[patients]
source = "patients.csv"
contributor = "id"
[patients.columns.sex]
type = "categorical"
categories = ["f", "m"]
[privacy]
epsilon = 2.0
delta = 1e-5
"""


def address(clinic: Clinic, text: str = ADDRESSED) -> None:
    clinic.study.write_text(clinic.study.read_text() + text)


def allow(clinic: Clinic, recipient: str) -> None:
    with Ledger.open(clinic.url) as ledger:
        ledger.set_allowance(recipient, cap_epsilon=10.0, cap_delta=1e-4)


def test_a_study_names_its_recipient_and_the_commit_puts_it_into_the_register(clinic: Clinic) -> None:
    address(clinic)
    allow(clinic, "university")
    release = clinic.run().release
    with Ledger.open(clinic.url) as ledger:
        (flow,) = ledger.flows()
        assert verify(release.path, ledger=ledger, second_opinions=0).ok
    assert (flow.sender, flow.recipient, flow.purpose, flow.state) == ("ward 7", "university", "research", "committed")
    assert flow.attributes == ("pressure", "sex", "ill") and flow.release_hash == release.digest
    stated = release.certificate.flow
    assert stated is not None and (stated.recipient, stated.purpose) == ("university", "research")
    linkage = release.certificate.linkage
    assert linkage is not None and linkage.rule == "the hospital's master patient index"
    assert [row.entries for row in linkage.wrong_links] == [1, 3, 5]
    assert all(row.epsilon < row.split_in_2 < row.split_in_3 for row in linkage.wrong_links)
    page = (release.path / "report.html").read_text()
    assert "split in 2" in page and "university" in page


def test_another_recipient_in_the_certificate_than_in_the_ledger_is_found(clinic: Clinic) -> None:
    address(clinic)
    release = clinic.run().release
    file = release.path / "certificate.json"
    document = json.loads(file.read_text())
    document["flow"]["recipient"] = "somebody else"
    document["linkage"]["wrong_links"][0]["split_in_2"] *= 0.9
    file.write_text(json.dumps(document))
    # the hash in the ledger is another one as well: each difference is named
    named = pytest.raises(VerificationError, match="not those that the ledger reserved for")
    with Ledger.open(clinic.url) as ledger, named as found:
        verify(release.path, ledger=ledger, second_opinions=0)
    assert "wrong links, k=1" in str(found.value) and "another certificate" in str(found.value)


@pytest.fixture
def no_torch(monkeypatch):
    """Fail where a run would begin to load torch."""

    def loaded() -> None:
        raise AssertionError("torch was asked for first")

    monkeypatch.setattr(runs, "require_torch", loaded)


@pytest.mark.usefixtures("no_torch")
def test_a_wrong_ledger_is_found_before_torch_is_loaded(clinic: Clinic) -> None:
    with pytest.raises(InputError, match="no ledger here"):
        runs.run_study(clinic.study, ledger_url=f"sqlite:///{clinic.home}/absent.sqlite")
    with pytest.raises(InputError, match="no ledger was named"):
        runs.run_study(clinic.study)
    address(clinic, '\n[ledger]\nkey_file = "absent.key"\n')
    with pytest.raises(InputError, match="key file"):
        clinic.run()


@pytest.mark.usefixtures("no_torch")
def test_a_recipient_without_allowance_is_refused_before_torch_is_loaded(clinic: Clinic) -> None:
    allow(clinic, "registry")
    with pytest.raises(BudgetError, match="no recipient was named"):
        clinic.run()
    address(clinic)
    with pytest.raises(BudgetError, match="no allowance"):
        clinic.run()
    assert clinic.spent() == 0


def test_what_if_asks_the_studys_ledger_for_the_studys_recipient(clinic: Clinic, capsys, monkeypatch) -> None:
    from confide.cli import main

    monkeypatch.delenv("CONFIDE_LEDGER", raising=False)
    address(clinic, ADDRESSED.replace("[ledger]", '[ledger]\nurl = "sqlite:///ledger.sqlite"'))
    allow(clinic, "university")
    assert main(["ledger", "what-if", str(clinic.study)]) == 0
    assert "would be admitted" in capsys.readouterr().out and clinic.spent() == 0
    assert main(["ledger", "what-if", str(clinic.study), "--recipient", "somebody else"]) == 3


def test_a_declared_table_makes_two_ids_one_person(clinic: Clinic) -> None:
    rows = (clinic.home / "visits.csv").read_text().splitlines()
    clinic.write(texts={'entry = "visit"': 'persons = "persons.csv"'})
    (clinic.home / "persons.csv").write_text("id,person\np000,p001\np002,anna-7\n")
    plain = len({row.split(",")[0] for row in rows[1:]})
    release = clinic.run().release
    with Ledger.open(clinic.url) as ledger:
        assert ledger.status().contributors <= plain - 1
        assert not ledger.remaining("p000").known and not ledger.remaining("p002").known
    linkage = release.certificate.linkage
    assert linkage is not None and linkage.method == "table" and "visits.csv" in linkage.rule
    assert not [name for name in ("p000", "anna-7") if name in (release.path / "certificate.json").read_text()]
    for text, words in (
        ("id,person\np000,a\np000,b\n", "twice"),
        ("id,who\np000,a\n", "unknown column"),
        ("id,person\np000,\n", "missing"),
    ):
        (clinic.home / "persons.csv").write_text(text)
        with pytest.raises(InputError, match=words):
            clinic.run()
    clinic.write(texts={'contributor = "patient"\nentry = "visit"': 'contributor = "row"\npersons = "persons.csv"'})
    with pytest.raises(InputError, match="table of persons"):
        runs.load_study(clinic.study)


def test_two_ids_of_one_person_are_charged_as_one(clinic: Clinic) -> None:
    """The person's class is that of all their entries, and the pairs of the plan are those of one contributor."""
    from confide.data import SourceSpec, read_sources
    from confide.studies.targets import schema_of

    clinic.write(texts={'entry = "visit"': ""})
    study = runs.load_study(clinic.study)
    (clinic.home / "persons.csv").write_text("id,person\np000,p001\n")
    spec = SourceSpec(source="visits.csv", contributor="patient", persons="persons.csv")
    linked = read_sources([spec], schema_of(study), base=clinic.home)
    plain = read_sources([spec.model_copy(update={"persons": None})], schema_of(study), base=clinic.home)
    counts = [dict(zip(t.index.ids.tolist(), t.index.counts.tolist(), strict=True)) for t in (linked, plain)]
    assert counts[0]["p001"] == counts[1]["p000"] + counts[1]["p001"] and "p000" not in counts[0]


def test_a_linkage_that_is_no_pseudonym_needs_its_rule(clinic: Clinic) -> None:
    address(clinic, '\n[linkage]\nmethod = "private records"\n')
    with pytest.raises(InputError, match="rule"):
        runs.load_study(clinic.study)
    clinic.write()
    address(clinic, '\n[linkage]\nmethods = "table"\n')
    with pytest.raises(InputError, match="method"):
        runs.load_study(clinic.study)


def test_the_trainer_names_them_too(tmp_path: Path) -> None:
    import torch
    from torch.utils.data import TensorDataset

    ledger = Ledger.create(f"sqlite:///{tmp_path}/ledger.sqlite", cap_epsilon=8.0, cap_delta=1e-4)
    ledger.set_allowance("university", cap_epsilon=8.0, cap_delta=1e-4)
    plan = confide.plan(epsilon=2.0, delta=1e-5, noise_multiplier=2.0, steps=3, max_entries=2, max_contributors=50)
    features, labels = torch.randn(20, 3), torch.randint(0, 2, (20,))
    data = confide.ContributorDataset(TensorDataset(features, labels), contributors=[f"p{i // 2}" for i in range(20)])
    model = torch.nn.Linear(3, 2)

    def trainer(**settings):
        return confide.Trainer(
            model,
            torch.nn.CrossEntropyLoss(reduction="none"),
            torch.optim.SGD(model.parameters(), lr=0.1),
            plan,
            ledger=ledger,
            output=tmp_path / "releases",
            **settings,
        )

    with pytest.raises(BudgetError, match="no recipient was named"):
        trainer().fit(data)
    linkage = Linkage("table", "a declared table")
    named = {"recipient": "university", "purpose": "teaching", "attributes": ["age", "sex", "sodium"]}
    release = trainer(**named, linkage=linkage).fit(data)
    (flow,) = ledger.flows()
    assert (flow.recipient, flow.purpose, flow.state) == ("university", "teaching", "committed")
    assert release.certificate.flow is not None and release.certificate.flow.attributes == ("age", "sex", "sodium")
    assert release.certificate.linkage is not None and release.certificate.linkage.rule == "a declared table"
    assert verify(release.path, ledger=ledger, second_opinions=0).ok


def test_a_synthesis_names_them_too(tmp_path: Path) -> None:
    study, url = tmp_path / "ward.toml", f"sqlite:///{tmp_path}/ledger.sqlite"
    study.write_text(TABLES + ADDRESSED)
    with pytest.raises(InputError, match="no ledger here"):  # and no data file was looked for
        run_synthesis(study, accept=lambda _: None, ledger_url=url)
    rows = "\n".join(f"p{i},{'fm'[i % 2]}" for i in range(200))
    (tmp_path / "patients.csv").write_text(f"id,sex\n{rows}\n")
    with Ledger.create(url, cap_epsilon=8.0, cap_delta=1e-4) as ledger:
        release = run_synthesis(study, accept=lambda _: None, ledger_url=url).release
        (flow,) = ledger.flows()
        assert verify(release.path, ledger=ledger, second_opinions=0).ok
    assert (flow.recipient, flow.attributes, flow.state) == ("university", ("sex",), "committed")
    linkage = release.certificate.linkage
    assert linkage is not None and linkage.method == "table"
    (row,) = linkage.wrong_links
    # a patient's sum moves by twice its bound, whether they are there twice or stand in for another one
    assert row.split_in_2 == pytest.approx(row.merged) and 2 * row.epsilon < row.split_in_2 < row.split_in_3


def test_the_command_hands_resume_on(tmp_path: Path, monkeypatch) -> None:
    """A run that is said to go on must not reserve a second time."""
    from confide.cli import main
    from confide.studies import synthesis_run

    study, url = tmp_path / "ward.toml", f"sqlite:///{tmp_path}/ledger.sqlite"
    study.write_text(TABLES)
    rows = "\n".join(f"p{i},{'fm'[i % 2]}" for i in range(50))
    (tmp_path / "patients.csv").write_text(f"id,sex\n{rows}\n")
    ledger = Ledger.create(url, cap_epsilon=8.0, cap_delta=1e-4)
    fit = synthesis_run.fit_tables
    monkeypatch.setattr(synthesis_run, "fit_tables", lambda *_, **__: (_ for _ in ()).throw(InputError("stopped")))
    assert main(["synthesize", str(study), "--yes", "--ledger", url]) == 2
    monkeypatch.setattr(synthesis_run, "fit_tables", fit)
    # What was charged goes on, also where allowances were declared meanwhile.
    ledger.set_allowance("university", cap_epsilon=4.0, cap_delta=1e-4)
    assert main(["synthesize", str(study), "--yes", "--ledger", url]) == 3
    assert main(["synthesize", str(study), "--yes", "--ledger", url, "--resume"]) == 0
    assert [row.state for row in ledger.reservations()] == ["committed"]


def test_a_synthesis_that_is_killed_while_it_reserves_is_charged_once(tmp_path: Path, monkeypatch) -> None:
    """The ledger has answered, and the run dies before it can note the reservation."""
    from confide.studies import state

    study, url = tmp_path / "ward.toml", f"sqlite:///{tmp_path}/ledger.sqlite"
    study.write_text(TABLES)
    rows = "\n".join(f"p{i},{'fm'[i % 2]}" for i in range(50))
    (tmp_path / "patients.csv").write_text(f"id,sex\n{rows}\n")
    ledger = Ledger.create(url, cap_epsilon=8.0, cap_delta=1e-4)
    save = state.save

    class Killed(BaseException):
        pass

    def dies(folder, run) -> None:
        if run.reservation is not None:
            raise Killed
        save(folder, run)

    monkeypatch.setattr(state, "save", dies)
    with pytest.raises(Killed):
        run_synthesis(study, accept=lambda _: None, ledger_url=url)
    monkeypatch.setattr(state, "save", save)
    run_synthesis(study, accept=lambda _: None, ledger_url=url, resume=True)
    assert [row.state for row in ledger.reservations()] == ["committed"]
    assert not list((tmp_path / "internal").glob("*.run"))
