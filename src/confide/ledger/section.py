"""``[ledger]`` and ``[linkage]`` of a study file: one declaration for every kind of study."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from confide.contributors import BY_PSEUDONYM, Linkage
from confide.data import without_password


class LedgerSection(BaseModel):
    """``[ledger]``: where the spend is remembered.

    Attributes
    ----------
    url : str, optional
        ``sqlite:///FILE``, ``postgresql://...`` without a password, or ``env:VARIABLE``.
    key_file : str, optional
        The key of a ledger whose key lies elsewhere.
    exhausted : "drop" or "refuse"
        What happens to contributors without balance.
    sender, recipient, purpose : str
        Who releases to whom and what for: the entry in the ledger's register of flows. Consent levels and allowances
        are judged by recipient and purpose; where allowances are declared a recipient must be named.
    """

    # an input may hold a password: it is never repeated in an error
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str | None = None
    key_file: str | None = None
    exhausted: Literal["drop", "refuse"] = "drop"
    sender: str = ""
    recipient: str = ""
    purpose: str = ""

    @field_validator("url")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and not re.match(r"(sqlite|postgresql(\+\w+)?)://", value):
            raise ValueError("is no address of a ledger; expected sqlite:///FILE, postgresql://... or env:VARIABLE")
        return without_password(value)

    @property
    def flow(self) -> dict[str, str]:
        """What `Ledger.reserve` takes of it."""
        return {"sender": self.sender, "recipient": self.recipient, "purpose": self.purpose}

    @property
    def declared(self) -> bool:
        """Whether anything was said about the flow, so that the certificate states it."""
        return any(self.flow.values())


class LinkageSection(BaseModel):
    """``[linkage]``: how the entries of one person came to carry one contributor id, for the certificate.

    Attributes
    ----------
    method : "pseudonym", "table" or "private records"
        Equal pseudonyms (the default), a declared table of ids, or private record linkage made beforehand.
    rule : str, optional
        The public rule that each decision followed; needed for everything but pseudonyms.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["pseudonym", "table", "private records"] = "pseudonym"
    rule: str | None = None

    @model_validator(mode="after")
    def _a_rule(self) -> LinkageSection:
        if self.method != "pseudonym" and not (self.rule or "").strip():
            raise ValueError('needs a rule: the public rule by which people were linked, rule = "..."')
        return self

    @property
    def linkage(self) -> Linkage:
        """What the certificate states."""
        return Linkage(self.method, self.rule or BY_PSEUDONYM.rule)
