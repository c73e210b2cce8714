"""What every section of a study file has in common: unknown keys are errors, and a number is not written in quotes."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def _scalars(annotation: Any) -> set[Any]:
    """Plain types in an annotation, without those inside containers."""
    if get_origin(annotation) in (Union, UnionType):
        return {one for part in get_args(annotation) for one in _scalars(part)}
    if get_origin(annotation) is Annotated:
        return _scalars(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    return {annotation}


class Section(BaseModel):
    """Base of every section."""

    # an input may hold a password: it is never repeated in an error
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a number in quotes, and true for 1: a study file that says one thing and means another."""
        wanted = _scalars(cls.model_fields[str(info.field_name)].annotation)
        if wanted & {float, int} and not wanted & {str, bool} and isinstance(value, str | bool):
            if isinstance(value, bool):
                raise ValueError(f"is {str(value).lower()}, a yes or no; a number is needed: {info.field_name} = 4")
            try:
                float(value)
            except ValueError:
                raise ValueError("is text; a number is needed, without quotes") from None
            raise ValueError(f"is text; write the number without quotes: {info.field_name} = {value}")
        return value
