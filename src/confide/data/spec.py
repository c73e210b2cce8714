"""What is declared about a table: its sources and its columns.

>>> schema = Schema.from_dict({
...     "chol": {"type": "real", "bounds": [100, 1800], "missing": "indicator"},
...     "sex": {"type": "categorical", "categories": ["f", "m"]},
...     "status": {"role": "label", "classes": [0, 1, 2], "positive": [2]},
... })
>>> schema.feature_names
('chol', 'chol is missing', 'sex=f', 'sex=m')

A schema holds public facts only: every bound, category and fill constant in it was declared by a person, none was taken
from the data. It may be printed whole and travels with a release; `Schema.assumed_public` lists what it assumes.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from confide.data.image_spec import Declared, ImageSpec
from confide.errors import InputError, nearest

Value = bool | int | float | str
#: Most classes of a mask: the positions of pixels in them are kept as bytes, of which one means "none of them".
MASK_CLASSES = 255


class SourceSpec(Declared):
    """One ``[[data]]`` table of a study: where entries come from and whose they are.

    Attributes
    ----------
    source : str
        ``named:NAME``, a CSV (also ``.csv.gz``), Parquet or ``.npz`` file (``file.npz#train_`` takes the arrays whose
        names begin with ``train_``, under the rest of the name), a SQLAlchemy URL (with `query`), or ``env:VARIABLE``
        with the URL in an environment variable (the study file travels with the release, so it holds no password).
    contributor : str
        Column of contributor ids, read as text; ``"row"`` where there are none (each row is then its own unit).
    entry : str, optional
        Column that tells a contributor's entries apart; (contributor, entry) must be unique.
    entry_unique : bool
        Declares that an entry key names one entry in the world, so that it cannot stand under two contributors.
    query : str, optional
        SQL, for a database source.
    separator, decimal : str
        How a CSV file separates columns and writes decimals.
    sha256 : str, optional
        Expected hash of the file.
    images : ImageSpec, optional
        Pictures named by a column of the table.
    persons : str, optional
        CSV file with the columns id and person: a declared table of ids that are one person. An id that it names is
        replaced by its person, every other id stays as it is.
    """

    source: str = Field(min_length=1)
    contributor: str = Field(min_length=1)
    entry: str | None = None
    entry_unique: bool = False
    query: str | None = None
    separator: Literal[",", ";", "\t", "|"] = ","
    decimal: Literal[".", ","] = "."
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    images: ImageSpec | None = None
    persons: str | None = None

    @property
    def kind(self) -> Literal["named", "sql", "parquet", "csv", "npz"]:
        """Which reader the source needs."""
        if self.source.startswith("named:"):
            return "named"
        if self.source.startswith("env:") or "://" in self.source:
            return "sql"
        if self.source.partition("#")[0].lower().endswith(".npz"):
            return "npz"
        return "parquet" if self.source.lower().endswith((".parquet", ".pq")) else "csv"

    @model_validator(mode="after")
    def _consistent(self) -> SourceSpec:
        if self.persons is not None and self.contributor == "row":
            raise ValueError('has a table of persons, but contributor = "row": name the column of ids')
        if self.kind == "sql":
            if "://" in self.source and _has_password(self.source):
                # The address is not repeated here: it holds the password.
                raise ValueError(
                    "the database address holds a password, and the study file travels with the release; put the "
                    'address in an environment variable and write source = "env:VARIABLE"'
                )
            if not self.query:
                raise ValueError('a database source needs a query, for example query = "select * from visits"')
        elif self.query:
            raise ValueError("query belongs to a database source; this source is a file or a named set")
        if self.images is not None and (self.images.array is not None) != (self.kind == "npz"):
            raise ValueError(
                "images = {array = ...} belongs to a .npz source, and a .npz source with images names their array"
            )
        if self.entry_unique and self.entry is None and self.images is None:
            raise ValueError("entry_unique needs an entry column")
        return self

    @property
    def label(self) -> str:
        """A name for messages: file name, set name or the kind of database, never an address."""
        if self.kind == "sql":
            return "the SQL query" if self.source.startswith("env:") else f"the {urlsplit(self.source).scheme} query"
        return self.source


def without_password(url: str | None) -> str | None:
    """Return a database address as it is, or refuse it (ValueError) because it holds a password.

    The study file travels with the release; the address itself is not repeated in the message.
    """
    if url is not None and "://" in url and _has_password(url):
        raise ValueError(
            "the address holds a password, and the study file travels with the release; put the address in an "
            'environment variable and write "env:VARIABLE"'
        )
    return url


def _has_password(url: str) -> bool:
    authority = url.split("://", 1)[1].split("/", 1)[0]
    return "@" in authority and ":" in authority.rsplit("@", 1)[0]


class ColumnSpec(Declared):
    """One ``[columns.NAME]`` table of a study: what a column may hold, declared as public knowledge.

    Attributes
    ----------
    role : "feature", "label", "attribute" or "ignore"
        An attribute (a consent level, a group for fairness) is kept beside the features and never learnt from.
    type : "real", "integer", "ordinal", "categorical", "date" or "mask"
        Needed for features; a label and an attribute may do without. A label of type "mask" has a class for every
        pixel; a label of type "real" or "integer" with bounds and without classes is a number to be predicted.
    folder : str, optional
        For masks: folder of the files that the column names (label images or .npy), relative to the study file. In a
        ``.npz`` source the masks are the array of the column's name.
    spacing : tuple of float, optional
        For masks: size of a pixel along each axis, (height, width) or (depth, height, width), for example in
        millimetres, the same for every picture; distances are measured in it, else in pixels.
    bounds : (low, high)
        For real, integer and date: scaled to -1 and 1. Values outside are refused unless `outside` is "clip".
    categories : tuple
        For categorical (one 0/1 feature each) and ordinal (equally spaced from -1 to 1, in the order given).
    classes, positive : tuple
        For the label: all classes, and those that count as 1. Without `positive` labels are positions in `classes`.
    missing : "refuse" or "indicator"
        "indicator" puts the constant `fill` in place and adds a 0/1 feature.
    fill : value, optional
        Default: the middle of the scale (for categorical: no category).
    outside : "refuse" or "clip"
        What happens to a number outside the bounds; clipped ones are counted in the internal source report.
    scale : "linear" or "log"
        How the bounds are spread over -1 to 1; "log" suits laboratory values and needs a positive lower bound.
    """

    role: Literal["feature", "label", "attribute", "ignore"] = "feature"
    type: Literal["real", "integer", "ordinal", "categorical", "date", "mask"] | None = None
    folder: str | None = None
    spacing: tuple[float, ...] | None = None
    bounds: tuple[Any, Any] | None = None
    categories: tuple[Value, ...] | None = None
    classes: tuple[Value, ...] | None = None
    positive: tuple[Value, ...] | None = None
    missing: Literal["refuse", "indicator"] = "refuse"
    fill: Any = None
    outside: Literal["refuse", "clip"] = "refuse"
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _consistent(self) -> ColumnSpec:
        if self.role == "ignore":
            return self
        if self.type != "mask" and (self.folder is not None or self.spacing is not None):
            raise ValueError('folder and spacing belong to masks: type = "mask"')
        if self.type == "mask" and self.role != "label":
            raise ValueError('a mask is what is predicted: role = "label"')
        if self.role == "label":
            return self._check_label()
        if self.classes is not None or self.positive is not None:
            raise ValueError("classes and positive belong to the label; this column's role is " + repr(self.role))
        if self.role == "attribute" and self.type is None:
            return self
        if self.type is None:
            raise ValueError("type is missing: real, integer, ordinal, categorical or date")
        if self.type in ("ordinal", "categorical"):
            self._check_categories()
        else:
            self._check_bounds()
        return self

    def _check_label(self) -> ColumnSpec:
        if self.missing != "refuse":
            raise ValueError("a missing label is always refused")
        if self.type in ("real", "integer") and self.classes is None:
            if self.positive is not None:
                raise ValueError("positive belongs to a label with classes; this one is a number")
            self._check_bounds()
            return self
        if self.type == "mask":
            self._check_mask()
        if not self.classes or len(self.classes) < 2 or len(set(map(str, self.classes))) != len(self.classes):
            raise ValueError("a label needs classes: all its values, at least two, none twice")
        unknown = [value for value in self.positive or () if value not in self.classes]
        if unknown:
            raise ValueError(f"positive holds {unknown[0]!r}, which is not among the classes {list(self.classes)}")
        if self.positive is not None and not 0 < len(set(self.positive)) < len(self.classes):
            raise ValueError("positive must name some of the classes, not none and not all")
        return self

    def _check_mask(self) -> None:
        values = self.classes or ()
        if any(isinstance(v, bool) or not isinstance(v, int) or not 0 <= v <= 65535 for v in values):
            raise ValueError("the classes of a mask are the values of its pixels, whole numbers from 0 to 65535")
        if len(values) > MASK_CLASSES:
            raise ValueError(f"a mask has at most {MASK_CLASSES} classes")
        if self.bounds is not None or self.categories is not None:
            raise ValueError("a mask takes classes, neither bounds nor categories")
        if self.spacing is not None and (len(self.spacing) not in (2, 3) or not min(self.spacing) > 0):
            raise ValueError("spacing is the size of a pixel along each axis, two or three numbers above 0")

    def _check_categories(self) -> None:
        if not self.categories or len(set(map(str, self.categories))) != len(self.categories):
            raise ValueError(f"{self.type} needs categories: all its values, none twice")
        if self.type == "ordinal" and len(self.categories) < 2:
            raise ValueError("ordinal needs at least two categories")
        if self.bounds is not None:
            raise ValueError(f"{self.type} takes categories, not bounds")
        if self.scale != "linear":
            raise ValueError('scale = "log" is for numbers')
        if self.fill is not None and self.fill not in self.categories:
            raise ValueError(f"fill is {self.fill!r}, which is not among the categories")
        if self.outside == "clip":
            raise ValueError('outside = "clip" is for numbers and dates')

    def _check_bounds(self) -> None:
        if self.categories is not None:
            raise ValueError(f"{self.type} takes bounds, not categories")
        if self.bounds is None:
            raise ValueError(f"{self.type} needs bounds = [low, high], known without looking at the data")
        low, high = self.low_high
        if not low < high:
            raise ValueError(f"bounds must be [low, high] with low below high, got {list(self.bounds)}")
        if self.scale == "log" and (low <= 0 or self.type == "date"):
            raise ValueError('scale = "log" needs numbers with a lower bound above 0')
        if self.fill is not None and not low <= self.number(self.fill) <= high:
            raise ValueError(f"fill is {self.fill!r}, outside the bounds {list(self.bounds)}")

    def number(self, value: Any) -> float:
        """Return a declared bound or constant as a number (dates: days since 1970-01-01)."""
        if self.type == "date":
            if isinstance(value, str):
                try:
                    value = datetime.date.fromisoformat(value)
                except ValueError:
                    raise ValueError(f"{value!r} is no date like 2001-12-31") from None
            if isinstance(value, datetime.datetime):
                value = value.date()
            if not isinstance(value, datetime.date):
                raise ValueError(f"{value!r} is no date like 2001-12-31")
            return float(value.toordinal() - datetime.date(1970, 1, 1).toordinal())
        if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
            raise ValueError(f"{value!r} is no finite number")
        return float(value)

    @property
    def low_high(self) -> tuple[float, float]:
        """The bounds as numbers."""
        assert self.bounds is not None
        return self.number(self.bounds[0]), self.number(self.bounds[1])

    @property
    def fill_scaled(self) -> float:
        """The constant put in place of a missing number, on the scale from -1 to 1."""
        if self.type == "ordinal":
            assert self.categories is not None
            return 0.0 if self.fill is None else 2 * self.categories.index(self.fill) / (len(self.categories) - 1) - 1
        return 0.0 if self.fill is None else float(self.scaled(self.number(self.fill)))

    def scaled(self, value: Any) -> Any:
        """Spread numbers (a float or an array) within the bounds over -1 to 1."""
        low, high = self.low_high
        if self.scale == "log":
            return 2 * np.log(value / low) / np.log(high / low) - 1
        return 2 * (value - low) / (high - low) - 1

    def unscaled(self, value: Any) -> Any:
        """Take numbers back from the scale of `scaled`."""
        low, high = self.low_high
        if self.scale == "log":
            return low * np.exp((value + 1) / 2 * np.log(high / low))
        return low + (value + 1) / 2 * (high - low)


class Schema(Declared):
    """All declared columns of a study, in the order of the file."""

    columns: dict[str, ColumnSpec] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_label(self) -> Schema:
        labels = [name for name, column in self.columns.items() if column.role == "label"]
        if len(labels) > 1:
            raise ValueError(f"there is more than one label: {', '.join(labels)}")
        return self

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any], *, where: str = "schema") -> Schema:
        """Build a schema from ``{column: {...}}`` as it stands under ``[columns]`` in a study file.

        Raises
        ------
        InputError
            With the column, what is wrong and, for an unknown key, the nearest known one.
        """
        try:
            return cls.model_validate({"columns": dict(columns)})
        except ValidationError as error:
            raise explain(error, ColumnSpec, where) from None

    @property
    def features(self) -> dict[str, ColumnSpec]:
        """The columns a model learns from."""
        return {name: column for name, column in self.columns.items() if column.role == "feature"}

    @property
    def attributes(self) -> dict[str, ColumnSpec]:
        """The columns that are kept beside the features: groups, consent levels."""
        return {name: column for name, column in self.columns.items() if column.role == "attribute"}

    @property
    def label(self) -> tuple[str, ColumnSpec] | None:
        """The label's name and declaration, if there is one."""
        return next(((name, column) for name, column in self.columns.items() if column.role == "label"), None)

    @property
    def target(self) -> Literal["classes", "mask", "number"]:
        """What the label is: one of several classes (also where there is no label), a class a pixel, or a number."""
        column = None if self.label is None else self.label[1]
        if column is None or column.classes is not None:
            return "mask" if column is not None and column.type == "mask" else "classes"
        return "number"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One name for each column of the feature matrix."""
        names: list[str] = []
        for name, column in self.features.items():
            if column.type == "categorical":
                names += [f"{name}={value}" for value in column.categories or ()]
            else:
                names.append(name)
            if column.missing == "indicator":
                names.append(f"{name} is missing")
        return tuple(names)

    @property
    def n_outputs(self) -> int:
        """1 for a label with two sides (one logit) or a number, else the number of classes; 0 without a label."""
        if self.label is None:
            return 0
        column = self.label[1]
        if column.classes is None:
            return 1
        return 1 if column.positive is not None or len(column.classes or ()) == 2 else len(column.classes or ())

    def assumed_public(self, source: str = "declared in the study file") -> list[dict[str, Any]]:
        """List every declared constant as ``{"what", "value", "source"}`` for a certificate."""
        facts: list[dict[str, Any]] = []

        def fact(name: str, what: str, value: Any) -> None:
            facts.append({"what": f"column {name!r}: {what}", "value": value, "source": source})

        for name, column in self.columns.items():
            if column.role == "ignore" or (column.role == "attribute" and column.type is None):
                continue
            if column.role == "label" and column.classes is not None:
                what = "the mask, values of its pixels" if column.type == "mask" else "the label"
                fact(name, f"classes of {what}", _plain(column.classes))
                if column.spacing is not None:
                    fact(name, "size of a pixel along each axis", list(column.spacing))
                if column.positive is not None:
                    fact(name, "classes that count as positive", _plain(column.positive))
                continue
            if column.bounds is not None:
                scale = " (logarithmic scale)" if column.scale == "log" else ""
                fact(name, f"bounds{scale}", _plain(column.bounds))
            if column.outside == "clip":
                fact(name, "values outside the bounds are moved to the nearest bound", True)
            if column.categories is not None:
                fact(name, "categories", _plain(column.categories))
            if column.missing == "indicator":
                if column.fill is not None:
                    value: Any = _plain((column.fill,))[0]
                else:
                    value = "no category" if column.type == "categorical" else "the middle of the declared range"
                fact(name, "constant in place of a missing value, with a 0/1 column", value)
        return facts


def _plain(values: tuple[Any, ...] | None) -> list[Any]:
    """Values as JSON knows them."""
    return [v.isoformat() if isinstance(v, datetime.date) else v for v in values or ()]


def explain(error: ValidationError, model: type[BaseModel], where: str) -> InputError:
    """Turn pydantic's first complaint into what, where, expected, remedy; the offending value is never repeated."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = list(model.model_fields)
        close = nearest(str(problem["loc"][-1]), known)
        return InputError(
            f"unknown key {str(problem['loc'][-1])!r}",
            where=f"{where}, {place}",
            expected="one of " + ", ".join(known),
            remedy=f"did you mean {close!r}?" if close else "remove it",
        )
    return InputError(problem["msg"].removeprefix("Value error, "), where=f"{where}, {place}" if place else where)
