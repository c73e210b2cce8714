"""Expected outputs of pymsprog for simulated patients, made once in an environment of its own and kept with the tests.

python benchmarks/ms/pymsprog_oracle.py trajectories > trajectories.json         # with confide
python benchmarks/ms/pymsprog_oracle.py expected trajectories.json > tests/data/fixtures/pymsprog.json   # with pymsprog
"""

from __future__ import annotations

import json
import sys


def trajectories() -> list[dict[str, object]]:
    from confide.data.ms import simulate_registry

    registry = simulate_registry(150, seed=3)
    found = []
    visits = registry.visits.drop_nulls("edss").sort("patient_id", "date")
    for (name,), rows in visits.group_by("patient_id", maintain_order=True):
        start = rows["date"].min()
        days = [(d - start).days for d in rows["date"].to_list()]
        own = registry.relapses.filter(registry.relapses["patient_id"] == name)["date"].to_list()
        attacks = [(d - start).days for d in own]
        found.append({"patient": name, "days": days, "edss": rows["edss"].to_list(), "relapses": attacks})
    return found


def expected(file: str) -> dict[str, object]:
    import importlib.metadata

    import pandas as pd
    from pymsprog import MSprog

    with open(file) as handle:
        people = json.load(handle)
    visits = pd.DataFrame([(p["patient"], d, e) for p in people for d, e in zip(p["days"], p["edss"], strict=True)],
                          columns=["id", "day", "edss"])  # fmt: skip
    relapses = pd.DataFrame([(p["patient"], d) for p in people for d in p["relapses"]], columns=["id", "day"])
    out = {}
    for confirm in (84, 168):
        _, results = MSprog(
            visits, "id", "edss", "day", "edss", relapse=relapses, rsubj_col="id", rdate_col="day",
            event="firstCDW", baseline="fixed", conf_days=confirm, date_format="day", verbose=0,
        )  # fmt: skip
        days = results.dropna(subset=["time2event"]) if "time2event" in results else results
        out[str(confirm)] = {
            str(row["id"]): int(row["time2event"])
            for _, row in days.iterrows()
            if str(row.get("event_type", "")).upper().startswith("CDW") or "CDW" in str(row.get("event_type", ""))
        }
    return {"made_by": f"pymsprog {importlib.metadata.version('pymsprog')}", "people": people, "day_of_event": out}


if __name__ == "__main__":
    print(json.dumps(trajectories() if sys.argv[1] == "trajectories" else expected(sys.argv[2])))
