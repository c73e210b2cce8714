"""The published JSON schema of `certificate.json` (draft 2020-12).

>>> json_schema()["title"]
'Certificate'

Written to the documentation and into the package by `scripts/write_certificate_schema.py`.
"""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

SHIPPED = "certificate.schema.json"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a certificate, as generated from the types."""
    from confide.release.certificate import Certificate

    # The Infinity type validates as a number but is written as a number or a word: the file's own form is published.
    schema = Certificate.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def shipped_schema() -> dict[str, Any]:
    """Return the schema file that came with the package; a test keeps it equal to `json_schema`."""
    text = importlib.resources.files("confide.release").joinpath(SHIPPED).read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
