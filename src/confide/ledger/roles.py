"""Who may do what in a ledger on PostgreSQL: privacy officer (reads all), engineer (reserves), auditor (verifies).

>>> print(statements()[0][:44])
DO $$ BEGIN CREATE ROLE confide_officer NOLO

The roles are groups without a log-in; an operator grants them to people: ``GRANT confide_engineer TO alice``. Consent,
allowances, erasure, key rotation and migrations stay with the owner of the database. On SQLite there are no roles: who
may open the file may do everything, so file permissions are all there is.
"""

from __future__ import annotations

from confide.errors import InputError
from confide.ledger import _schema as schema
from confide.ledger.ledger import Ledger

OFFICER, ENGINEER, AUDITOR = "confide_officer", "confide_engineer", "confide_auditor"

# Tables to which an engineer's reservations, data sets and derived releases add rows.
_ADDS = (
    *("token", "balance", "reservation", "spend", "codes", "membership", "journal", "flow", "site_round"),
    *("account", "account_balance", "account_spend", "data_set", "data_set_member"),
)
# What an engineer may change in a row that is there: nothing in the journal, in consent or in what was erased.
_CHANGES = {
    "meta": ("value",),
    "token": ("tokens", "numbers"),
    "balance": ("counters",),
    "account_balance": ("counters",),
    "reservation": ("state", "release_hash"),
    "site_round": ("state",),
}


def statements() -> list[str]:
    """Return the SQL that makes the roles and their rights; running it again changes nothing."""
    roles = (OFFICER, ENGINEER, AUDITOR)
    out = [
        f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$" for role in roles
    ]
    tables = sorted(schema.metadata.tables)
    everything = ", ".join(tables)
    for role in roles:
        out.append(f"REVOKE ALL ON {everything} FROM {role}")
        out.append(f"GRANT SELECT ON {everything} TO {role}")
    out.append(f"GRANT INSERT ON {', '.join(sorted(_ADDS))} TO {ENGINEER}")
    for table, columns in _CHANGES.items():
        out.append(f"GRANT UPDATE ({', '.join(columns)}) ON {table} TO {ENGINEER}")
    # Row by row: an engineer counts contributors in `meta` and changes nothing else there, and moves on only the
    # reservations that the same account made.
    for table, changes in (("meta", "name = 'contributors'"), ("reservation", "owner = session_user")):
        out.append(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        for policy in ("read", "change", "add"):
            out.append(f"DROP POLICY IF EXISTS confide_{policy} ON {table}")
        out.append(f"CREATE POLICY confide_read ON {table} FOR SELECT TO {', '.join(roles)} USING (true)")
        out.append(
            f"CREATE POLICY confide_change ON {table} FOR UPDATE TO {ENGINEER} USING ({changes}) WITH CHECK ({changes})"
        )
    out.append(
        f"CREATE POLICY confide_add ON reservation FOR INSERT TO {ENGINEER} "
        "WITH CHECK (owner = session_user AND state = 'reserved')"
    )
    return out


def apply(ledger: Ledger) -> list[str]:
    """Make the roles in the database of a ledger, in one transaction; return the SQL that was run.

    Raises
    ------
    InputError
        The ledger is on SQLite.
    RunError
        This account may not make roles; then nothing changed.
    """
    if ledger._store.sqlite:
        raise InputError(
            "SQLite has no roles: who may open the file may do everything",
            where=ledger.where,
            expected="a ledger on PostgreSQL",
            remedy="keep the file and its key file at mode 600 with one account, or move to PostgreSQL",
        )
    made = statements()
    with ledger._store.write() as connection:
        ledger._check_key(connection)
        for statement in made:
            connection.exec_driver_sql(statement)
    return made
