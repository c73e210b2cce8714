"""Releases in the schema of the public registry of deployments of differential privacy, out and in.

>>> shown = Deployment(name="Model", curators=("Hospital",), description="d", intended_use="research",
...                    product_type="Machine learning model", region="EU", published="2026-11-22", authors=("A",))
>>> Deployment.from_record(shown.to_record()) == shown
True

The registry (OpenDP, since November 2025; https://github.com/opendp/deployments-registry-data) holds one record a
deployment in three tiers: what it is, how it is protected, how that was done. A record says what may be known to
everybody: nothing here depends on who is in the data or on how many they are. JSON is written, which is YAML too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide._files import write_atomic
from confide.errors import InputError
from confide.ledger.ledger import Ledger

STATUS = (
    *("Converted", "Draft", "Pending", "Changes Required"),
    *("Approved", "Approved (Update Requested)", "Approved (Pending)"),
)
PRODUCTS = (
    *("Summary statistics", "Machine learning model", "Dataset"),
    *("Synthetic data", "Interactive API", "SQL queries"),
)
SECTORS = ("Technology", "Healthcare", "Education", "Government", "Energy", "Finance")
VARIANTS = ("Pure DP", "Approximate DP", "Zero-concentrated DP", "Renyi DP", "Custom")
MODELS = ("Local", "Central", "Shuffle", "Federated", "Varies")

# Sections of a record with the fields that each may have; the registry refuses any other.
_BASIC = (
    *("name", "data_curators", "description", "intended_use", "data_product_type"),
    *("data_product_region", "publication_date"),
)
SECTIONS: dict[str, tuple[str, ...]] = {
    "basic": (*_BASIC, "data_product_sector"),
    "dp_variant": ("variant_name", "data_domain", "unprotected_quantities"),
    "privacy_loss": (*("privacy_unit", "privacy_unit_details", "privacy_parameters", "privacy_parameters_details"),),
    "deployment_model": (
        *("model_name", "model_name_details", "actors", "release_type", "release_type_details"),
        *("data_source_type", "data_source_type_details", "access_type", "access_type_details"),
    ),
    "accounting": ("post_processing", "composition"),
    "implementation": ("preprocessing_and_hyperparameter_tuning", "mechanisms", "justification"),
    "administrative": ("sources", "notes", "registry_authors"),
}


@dataclass(frozen=True)
class Deployment:
    """What the registry says about one deployment; texts are free, empty where nothing was said.

    Attributes
    ----------
    epsilon, delta : float or None
        Parameters for the stated unit.
    unit, unit_details : str
        Who is protected, and what neighbouring data sets are.
    """

    name: str
    curators: tuple[str, ...]
    description: str
    intended_use: str
    product_type: str
    region: str
    published: str
    authors: tuple[str, ...]
    sector: str = "Healthcare"
    status: str = "Draft"
    variant: str = "Approximate DP"
    unprotected: str = ""
    unit: str = ""
    unit_details: str = ""
    epsilon: float | None = None
    delta: float | None = None
    parameters_details: str = ""
    model: str = "Central"
    composition: str = ""
    mechanisms: str = ""
    notes: str = ""

    @property
    def slug(self) -> str:
        """The end of the record's stable address."""
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.name} {self.curators[0]} {self.published[:4]}".lower())
        return words.strip("-")

    def to_record(self) -> dict[str, Any]:
        """Return the record, checked against the registry's fields and enumerations."""
        parameters = {k: v for k, v in (("epsilon", self.epsilon), ("delta", self.delta)) if v is not None}
        deployment: dict[str, dict[str, Any]] = {
            "basic": {
                "name": self.name,
                "data_curators": list(self.curators),
                "description": self.description,
                "intended_use": self.intended_use,
                "data_product_type": self.product_type,
                "data_product_region": self.region,
                "publication_date": self.published,
                "data_product_sector": self.sector,
            },
            "dp_variant": {"variant_name": self.variant, "unprotected_quantities": self.unprotected},
            "privacy_loss": {
                "privacy_unit": self.unit,
                "privacy_unit_details": self.unit_details,
                "privacy_parameters": parameters,
                "privacy_parameters_details": self.parameters_details,
            },
            "deployment_model": {
                "model_name": self.model,
                "release_type": "One release",
                "data_source_type": "Static",
                "access_type": "Non-interactive",
            },
            "accounting": {"composition": self.composition},
            "implementation": {"mechanisms": self.mechanisms},
            "administrative": {"notes": self.notes, "registry_authors": list(self.authors)},
        }
        record = {
            "url_slug": self.slug,
            "status": self.status,
            "tier": 3 if self.mechanisms and self.unit_details else 2 if self.unit else 1,
            "deployment": {
                section: {k: v for k, v in fields.items() if v not in ("", {})}
                for section, fields in deployment.items()
            },
        }
        check_record(record)
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Deployment:
        """Read a record of the registry.

        Raises
        ------
        InputError
            It lacks a required field, has one that the registry does not know, or a value outside an enumeration.
        """
        check_record(record)
        part = record["deployment"]
        basic, loss = part["basic"], part.get("privacy_loss", {})
        parameters = loss.get("privacy_parameters", {})

        def number(name: str) -> float | None:
            try:
                return float(parameters[name])
            except (KeyError, TypeError, ValueError):
                return None  # the registry allows words here ("negligible"); they stay in the record

        return cls(
            name=basic["name"],
            curators=tuple(basic["data_curators"]),
            description=basic["description"],
            intended_use=basic["intended_use"],
            product_type=basic["data_product_type"],
            region=basic["data_product_region"],
            published=str(basic["publication_date"]),
            authors=tuple(part.get("administrative", {}).get("registry_authors", ())),
            sector=basic.get("data_product_sector", ""),
            status=record["status"],
            variant=part.get("dp_variant", {}).get("variant_name", ""),
            unprotected=part.get("dp_variant", {}).get("unprotected_quantities", ""),
            unit=loss.get("privacy_unit", ""),
            unit_details=loss.get("privacy_unit_details", ""),
            epsilon=number("epsilon"),
            delta=number("delta"),
            parameters_details=str(loss.get("privacy_parameters_details", "")),
            model=part.get("deployment_model", {}).get("model_name", ""),
            composition=part.get("accounting", {}).get("composition", ""),
            mechanisms=part.get("implementation", {}).get("mechanisms", ""),
            notes=part.get("administrative", {}).get("notes", ""),
        )

    def write(self, file: str | Path) -> None:
        """Write the record (JSON, which is YAML)."""
        write_atomic(Path(file), json.dumps(self.to_record(), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, file: str | Path) -> Deployment:
        """Read a record from a JSON file, or from a YAML file where PyYAML is installed.

        Raises
        ------
        InputError
            The file cannot be read or is no record of the registry.
        """
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("the record cannot be read", where=str(file)) from error
        try:
            found = json.loads(text)
        except ValueError:
            try:
                import yaml  # type: ignore[import-untyped]
            except ImportError as error:
                raise InputError(
                    "this record is YAML, which needs PyYAML",
                    where=str(file),
                    remedy="pip install pyyaml, or save it as JSON",
                ) from error
            try:
                found = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise InputError("the file is neither JSON nor YAML", where=str(file)) from error
        return cls.from_record(found)


def check_record(record: Any) -> None:
    """Refuse what the registry would refuse.

    Raises
    ------
    InputError
        Naming the field.
    """

    def wrong(where: str, expected: str) -> InputError:
        return InputError("this is no record of the registry of deployments", where=where, expected=expected)

    if not isinstance(record, Mapping) or set(record) != {"url_slug", "status", "tier", "deployment"}:
        raise wrong("record", "url_slug, status, tier and deployment")
    if record["status"] not in STATUS or record["tier"] not in (1, 2, 3):
        raise wrong("status, tier", f"one of {', '.join(STATUS)}; 1, 2 or 3")
    parts = record["deployment"]
    if not isinstance(parts, Mapping) or "basic" not in parts:
        raise wrong("deployment", "a section named basic")
    for section, fields in parts.items():
        if section not in SECTIONS or not isinstance(fields, Mapping):
            raise wrong(f"deployment.{section}", ", ".join(SECTIONS))
        unknown = set(fields) - set(SECTIONS[section])
        if unknown:
            raise wrong(f"deployment.{section}.{sorted(unknown)[0]}", ", ".join(SECTIONS[section]))
    basic = parts["basic"]
    for name in _BASIC:
        if not basic.get(name):
            raise wrong(f"deployment.basic.{name}", "a value: the field is required")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(basic["publication_date"])):
        raise wrong("deployment.basic.publication_date", "YYYY-MM-DD")
    for where, value, allowed in (
        ("basic.data_product_type", basic["data_product_type"], PRODUCTS),
        ("basic.data_product_sector", basic.get("data_product_sector"), SECTORS),
        ("dp_variant.variant_name", parts.get("dp_variant", {}).get("variant_name"), VARIANTS),
        ("deployment_model.model_name", parts.get("deployment_model", {}).get("model_name"), MODELS),
    ):
        if value is not None and value not in allowed:
            raise wrong(f"deployment.{where}", ", ".join(allowed))
    if set(parts.get("privacy_loss", {}).get("privacy_parameters", {})) - {"epsilon", "delta", "rho"}:
        raise wrong("deployment.privacy_loss.privacy_parameters", "epsilon, delta, rho")


def deployment_of(
    ledger: Ledger,
    reservation: str,
    *,
    curators: Sequence[str],
    description: str,
    intended_use: str,
    product_type: str,
    region: str,
    authors: Sequence[str],
) -> Deployment:
    """Describe one committed release of a ledger for the registry: its guarantee per person, mechanism and composition.

    Raises
    ------
    InputError
        The reservation is unknown or not committed, or a required text is missing.
    """
    record = ledger.reservation(reservation)
    if record.state != "committed":
        raise InputError(f"this reservation is {record.state}", where=reservation, expected="a committed one")
    flow = next(one for one in ledger.flows() if one.reservation == reservation)
    delta = ledger.rule.delta
    worst = max(flow.guarantees, key=lambda guarantee: guarantee.epsilon(delta))
    parts = [f"{steps} x {mechanism.to_dict()}" for mechanism, steps in worst.parts]
    return Deployment(
        name=record.release,
        curators=tuple(curators),
        description=description,
        intended_use=intended_use,
        product_type=product_type,
        region=region,
        published=record.created[:10],
        authors=tuple(authors),
        unit="Person (a patient with all their entries)",
        unit_details=f"Neighbouring data sets differ by all entries of one person ({worst.relation}).",
        epsilon=worst.epsilon(delta),
        delta=delta,
        parameters_details=f"The worst of {len(flow.guarantees)} classes of contributors; smaller for the others.",
        composition=f"A per-person ledger with a lifetime cap of epsilon {ledger.rule.epsilon:g} at delta {delta:g}, "
        "over all releases and data sets, admitted by a Renyi filter valid for adaptively chosen releases.",
        mechanisms=f"confide; {'; '.join(parts)}",
        notes=f"Release hash (SHA-256): {record.release_hash}",
        model="Federated" if ledger.is_joint(reservation) else "Central",
    )
