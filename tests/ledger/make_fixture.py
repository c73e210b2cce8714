"""Write a ledger as plain JSON, so that later versions can be tested on a database that an older one made.

Run with the version whose schema is to be kept (this is how `fixtures/schema_1.json` was made)::

    python tests/ledger/make_fixture.py tests/ledger/fixtures/schema_1.json
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from confide.accounting import Gaussian, SampledGaussian
from confide.ledger import Ledger

PEOPLE = [f"patient {i}" for i in range(60)]
HASH = "0123456789abcdef" * 4


def history(url: str, key: Path) -> dict[str, Any]:
    """Make a ledger with reservations in every state; return what every later version must still say of it."""
    ledger = Ledger.create(url, cap_epsilon=8.0, cap_delta=1e-6, key=key)
    plans = [SampledGaussian(noise_multiplier=1.0, rate=0.01, entries=k).guarantee(steps=200) for k in (1, 2, 5)]

    def reserve(name: str, people: list[str], **more: str) -> str:
        class_of = np.arange(len(people)) % 3
        return ledger.reserve(
            release=name, contributors=people, class_of=class_of, classes=plans, data_set="x-rays", **more
        ).id

    done = reserve("committed", PEOPLE[:40])
    ledger.start(done)
    receipt = ledger.commit(done, release_hash=HASH)
    ledger.abort(reserve("aborted", PEOPLE))
    gone = reserve("abandoned", PEOPLE[20:])
    ledger.start(gone)
    ledger.abort(gone)
    ledger.rotate_key()
    open_ = reserve("reserved", PEOPLE[::2], idempotency_key="job 1")
    going = reserve("started", PEOPLE[:10])
    ledger.start(going)
    whole = Gaussian(noise_multiplier=0.73).guarantee()
    ledger.reserve(release="closing", contributors=["one"], class_of=np.zeros(1, int), classes=[whole], data_set="d")
    ledger.verify()
    everybody = [*PEOPLE, "one"]
    return {
        "people": everybody,
        "used": ledger.used(everybody).tolist(),
        "epsilon": [ledger.remaining(person).epsilon for person in everybody[::10]],
        "history": {person: [spend.release for spend in ledger.history(person)] for person in everybody},
        "records": [record.to_dict() for record in ledger.reservations()],
        "receipt": receipt.to_dict(),
        "open": open_,
        "going": going,
    }


def dump(url: str) -> dict[str, Any]:
    """Return every table of a database: columns and rows, bytes as base64."""
    engine = sa.create_engine(url)
    found = sa.MetaData()
    found.reflect(engine)
    out: dict[str, Any] = {}
    with engine.connect() as connection:
        for table in found.sorted_tables:
            rows = [
                [{"b64": base64.b64encode(v).decode()} if isinstance(v, bytes) else v for v in row]
                for row in connection.execute(sa.select(table))
            ]
            out[table.name] = {"columns": [column.name for column in table.columns], "rows": rows}
    engine.dispose()
    return out


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        url, key = f"sqlite:///{folder}/ledger.sqlite", Path(folder) / "key"
        expected = history(url, key)
        content = {"tables": dump(url), "key": json.loads(key.read_text()), "expected": expected}
    target.write_text(json.dumps(content, indent=None, separators=(",", ":")) + "\n")
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
