"""Readers for what hospitals have, the declared schema, and small real data sets."""

from confide.data.draft import draft_study
from confide.data.ids import contributor_ids, linked_ids, persons_of
from confide.data.image_spec import ImageSpec
from confide.data.named import declaration, load, names, without_duplicates
from confide.data.readers import find_file, read_source
from confide.data.spec import ColumnSpec, Schema, SourceSpec, without_password
from confide.data.table import SourceReport, Table, read_features, read_sources

__all__ = [
    "ColumnSpec",
    "ImageSpec",
    "Schema",
    "SourceReport",
    "SourceSpec",
    "Table",
    "contributor_ids",
    "declaration",
    "draft_study",
    "find_file",
    "linked_ids",
    "load",
    "names",
    "persons_of",
    "read_features",
    "read_source",
    "read_sources",
    "without_duplicates",
    "without_password",
]
