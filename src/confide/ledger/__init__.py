"""What has been spent: reserve, start, commit, per contributor, over releases and data sets."""

from __future__ import annotations

from confide.ledger._migrate import Migrated
from confide.ledger._schema import SCHEMA_VERSION
from confide.ledger.filter import Filter
from confide.ledger.flows import Flow, NoPrivateAccess, bits, run_derived
from confide.ledger.joint import JointRelease, Site, joint_mechanism, shared_tokens, together
from confide.ledger.ledger import Ledger
from confide.ledger.odometer import Distribution, Effect, Odometer, Person
from confide.ledger.records import (
    Cap,
    Cohort,
    DataSet,
    Receipt,
    Record,
    Remaining,
    Reservation,
    Spend,
    Status,
    Verified,
    WhatIf,
)
from confide.ledger.registry import Deployment, deployment_of

__all__ = [
    "SCHEMA_VERSION",
    "Cap",
    "Cohort",
    "DataSet",
    "Deployment",
    "Distribution",
    "Effect",
    "Filter",
    "Flow",
    "JointRelease",
    "Ledger",
    "Migrated",
    "NoPrivateAccess",
    "Odometer",
    "Person",
    "Receipt",
    "Record",
    "Remaining",
    "Reservation",
    "Site",
    "Spend",
    "Status",
    "Verified",
    "WhatIf",
    "bits",
    "deployment_of",
    "joint_mechanism",
    "run_derived",
    "shared_tokens",
    "together",
]
