"""What leaves the house: a certificate, a folder written in one atomic step, and the check of both.

`certify` states the guarantee of a plan, `write_release` writes the folder, `Release.load` reads it back and `verify`
computes every figure again.
"""

from confide.release.build import certify, facts_of, library_versions, paid_metric
from confide.release.certificate import (
    NOT_RECORDED,
    PER_ENTRY,
    PREVIEW,
    TESTING_ONLY,
    AssumedPublic,
    Certificate,
    Citation,
    ClassGuarantee,
    Facts,
    FlowFacts,
    LedgerReference,
    LinkageFacts,
    PaidMetric,
    Part,
    Spent,
    WrongLinks,
)
from confide.release.folder import Release, outside_releases, write_release
from confide.release.rebuild import guarantee_of, restate
from confide.release.schema import json_schema
from confide.release.verify import Check, LedgerReceipt, LedgerView, VerifyReport, verify
from confide.release.words import NOT_COVERED, TRUSTED

__all__ = [
    "NOT_COVERED",
    "NOT_RECORDED",
    "PER_ENTRY",
    "PREVIEW",
    "TESTING_ONLY",
    "TRUSTED",
    "AssumedPublic",
    "Certificate",
    "Check",
    "Citation",
    "ClassGuarantee",
    "Facts",
    "FlowFacts",
    "LedgerReceipt",
    "LedgerReference",
    "LedgerView",
    "LinkageFacts",
    "PaidMetric",
    "Part",
    "Release",
    "Spent",
    "VerifyReport",
    "WrongLinks",
    "certify",
    "facts_of",
    "guarantee_of",
    "json_schema",
    "library_versions",
    "outside_releases",
    "paid_metric",
    "restate",
    "verify",
    "write_release",
]
