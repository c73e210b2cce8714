"""What each role may do, tried on a real PostgreSQL server."""

from __future__ import annotations

import uuid

import pytest
import sqlalchemy as sa

from confide.cli import main
from confide.errors import ConfideError, InputError, RunError
from confide.ledger import Ledger, roles

from .conftest import take

PEOPLE = [f"p{i}" for i in range(8)]
HASH = "ab" * 32


def test_sqlite_has_file_permissions_only(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/l.sqlite"
    with Ledger.create(url, cap_epsilon=8, cap_delta=1e-6) as ledger, pytest.raises(InputError, match="no roles"):
        roles.apply(ledger)
    assert main(["ledger", "roles", "--ledger", url]) == 0 and "File permissions" in capsys.readouterr().out
    assert main(["ledger", "roles", "--apply", "--ledger", url]) == 2


@pytest.fixture
def server(postgres, tmp_path):
    """A ledger with roles; a function that opens it as a new account with one of them."""
    import psycopg

    name = "t" + uuid.uuid4().hex
    with psycopg.connect(postgres.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url, key = postgres.format(name=name), tmp_path / "key"
    owner = Ledger.create(url, cap_epsilon=8, cap_delta=1e-6, key=key)
    roles.apply(owner)
    roles.apply(owner)  # again changes nothing
    opened = [owner]

    def as_role(role: str) -> Ledger:
        account = "u" + uuid.uuid4().hex
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {account} LOGIN IN ROLE {role}")
        opened.append(Ledger.open(url.replace("confide@", f"{account}@"), key=key))
        return opened[-1]

    yield owner, as_role
    for ledger in opened:
        ledger.close()


@pytest.mark.slow
def test_the_engineer_reserves_and_changes_nothing_else(server):
    owner, as_role = server
    engineer, other = as_role(roles.ENGINEER), as_role(roles.ENGINEER)
    owner.define_level("basic", cap_epsilon=2.0)
    owner.set_consent(PEOPLE[:2], "basic")
    owner.set_allowance("*", cap_epsilon=6.0, cap_delta=1e-6)
    kept = take(engineer, PEOPLE, 0.2, recipient="x")
    engineer.start(kept.id)
    assert engineer.commit(kept.id, release_hash=HASH).release_hash == HASH
    refunded = take(engineer, PEOPLE, 0.2, recipient="x")
    assert engineer.abort(refunded.id) and engineer.remaining(PEOPLE[0]).releases == 1
    engineer.create_data_set("d", [*PEOPLE, "new"])
    mine = take(engineer, ["new"], 0.2, recipient="x")
    used = owner.used(PEOPLE)
    for move in (
        lambda: other.start(mine.id),
        lambda: other.commit(mine.id, release_hash=HASH),
        lambda: other.abort(mine.id),
        lambda: engineer.set_consent(PEOPLE, "withdrawn"),
        lambda: engineer.define_level("mine"),
        lambda: engineer.set_allowance("x", cap_epsilon=8.0, cap_delta=1e-6),
        lambda: engineer.erase(PEOPLE[:1]),
        lambda: engineer.rotate_key(),
        lambda: engineer.extend_data_set("d", ["later"]),
        lambda: roles.apply(engineer),
    ):
        with pytest.raises(ConfideError):
            move()
    assert (owner.used(PEOPLE) == used).all() and owner.reservation(mine.id).state == "reserved"
    engineer.commit(mine.id, release_hash=HASH)
    owner.verify()


@pytest.mark.slow
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal SET body = '{}'",
        "DELETE FROM journal",
        "DELETE FROM reservation",
        "UPDATE reservation SET admitted = 0",
        "DELETE FROM balance",
        "UPDATE spend SET charge = '[0,0,0]'",
        "UPDATE carried SET counters = ''",
        "UPDATE allowance SET period = 'month'",
        "TRUNCATE consent",
        "DROP TABLE journal",
        "ALTER TABLE reservation DISABLE ROW LEVEL SECURITY",
    ],
)
def test_an_engineer_cannot_rewrite_the_past_in_sql(server, statement):
    owner, as_role = server
    engineer = as_role(roles.ENGINEER)
    take(engineer, PEOPLE, 0.2)
    with pytest.raises(RunError), engineer._store.write() as connection:
        connection.execute(sa.text(statement))
    owner.verify()


@pytest.mark.slow
def test_an_engineer_cannot_change_the_declared_facts(server):
    owner, as_role = server
    engineer = as_role(roles.ENGINEER)
    with engineer._store.write() as connection:
        changed = connection.execute(sa.text("UPDATE meta SET value = 'x' WHERE name = 'rule'"))
        assert changed.rowcount == 0  # the row is not his to change
    with pytest.raises(RunError), engineer._store.write() as connection:
        connection.execute(sa.text("INSERT INTO meta VALUES ('other', 'x')"))
    owner.verify()


@pytest.mark.slow
@pytest.mark.parametrize("role", [roles.OFFICER, roles.AUDITOR])
def test_officer_and_auditor_read_everything_and_write_nothing(server, role):
    owner, as_role = server
    kept = take(owner, PEOPLE, 0.2)
    reader = as_role(role)
    assert reader.verify().reservations == 1 and reader.remaining(PEOPLE[0]).releases == 1
    assert len(reader.flows()) == 1 and reader.status().contributors == 8 and reader.policy()["levels"] == []
    for move in (
        lambda: take(reader, PEOPLE, 0.1),
        lambda: reader.register(["someone new"]),
        lambda: reader.start(kept.id),
        lambda: reader.abort(kept.id),
        lambda: reader.erase(PEOPLE[:1]),
    ):
        with pytest.raises(RunError):
            move()
    assert reader.reservation(kept.id).state == "reserved"


@pytest.mark.slow
def test_an_account_without_a_role_reads_nothing(server):
    import psycopg

    owner, _ = server
    account = "u" + uuid.uuid4().hex
    url = owner._store.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {account} LOGIN")
    with pytest.raises(RunError):
        Ledger.open(url.replace("confide@", f"{account}@"), key=owner._key_file)
