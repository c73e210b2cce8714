"""What has been spent: reserve, start, commit, per contributor, over releases and data sets."""

from __future__ import annotations

from confide.ledger._migrate import Migrated
from confide.ledger._schema import SCHEMA_VERSION
from confide.ledger.filter import Filter
from confide.ledger.ledger import Ledger
from confide.ledger.records import Cohort, Receipt, Record, Remaining, Reservation, Spend, Status, Verified, WhatIf

__all__ = [
    "SCHEMA_VERSION",
    "Cohort",
    "Filter",
    "Ledger",
    "Migrated",
    "Receipt",
    "Record",
    "Remaining",
    "Reservation",
    "Spend",
    "Status",
    "Verified",
    "WhatIf",
]
