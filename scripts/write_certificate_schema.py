#!/usr/bin/env python3
"""Write the published JSON schema of certificate.json into the package and the documentation."""

import json
from pathlib import Path

import confide.release
from confide.release import json_schema

ROOT = Path(__file__).resolve().parent.parent
PLACES = (
    Path(confide.release.__file__).with_name("certificate.schema.json"),
    ROOT / "docs" / "certificate.schema.json",
)

if __name__ == "__main__":
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    for place in PLACES:
        place.write_text(text, encoding="utf-8")
        print(f"wrote {place}")
