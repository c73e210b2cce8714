"""What a certificate says about the linkage of people: the assumption in words, wrong links in figures."""

from __future__ import annotations

from collections.abc import Sequence

from confide.contributors import Linkage, merged_guarantee, split_guarantee
from confide.errors import ConfideError, InputError
from confide.release.certificate import ClassGuarantee, LinkageFacts, WrongLinks
from confide.release.rebuild import guarantee_of


def linkage_facts(linkage: Linkage, classes: Sequence[ClassGuarantee], *, clip_unit: str, delta: float) -> LinkageFacts:
    """State how people were linked, and the guarantee of a person split in 2 and 3 pieces or merged with another one.

    Parameters
    ----------
    linkage : Linkage
        The public rule.
    classes : sequence of ClassGuarantee
        As the certificate states them.
    clip_unit : {"entry", "contributor"}
        Whether each drawn entry is clipped, or what a contributor gives as a whole.
    """
    rows = []
    note = ""
    for number in dict.fromkeys((0, (len(classes) - 1) // 2, len(classes) - 1)):
        try:
            rows.append(wrong_links_of(classes[number], classes, clip_unit=clip_unit, delta=delta))
        except InputError as error:  # a mechanism whose pieces nobody has put together: said, not left out
            note = f"no figures: {error.what}"
            break
    return LinkageFacts(
        method=linkage.method,
        rule=linkage.rule,
        assumption=linkage.assumption,
        wrong_links=tuple(rows) if not note else (),
        note=note,
    )


def wrong_links_of(
    one: ClassGuarantee, classes: Sequence[ClassGuarantee], *, clip_unit: str, delta: float
) -> WrongLinks:
    """Return the guarantee of people like those of one class where the linkage split or merged them.

    Raises
    ------
    InputError
        The pieces of one of their mechanisms cannot be put together.
    """
    alone = guarantee_of(one)
    pieces = [split_guarantee(alone, n).epsilon(delta) for n in (2, 3)]
    try:
        both = guarantee_of(_class_of(2 * one.entries, one.budget, classes))
        merged = merged_guarantee(alone, both, clip_unit=clip_unit).epsilon(delta)
    except ConfideError:
        merged = None
    return WrongLinks(
        entries=one.entries, epsilon=one.epsilon, split_in_2=pieces[0], split_in_3=pieces[1], merged=merged
    )


def _class_of(entries: int, budget: float | None, classes: Sequence[ClassGuarantee]) -> ClassGuarantee:
    """Return the class of a contributor with so many entries, as plans assign it: the next larger, or the last."""
    same = sorted((one for one in classes if one.budget == budget), key=lambda one: one.entries)
    return next((one for one in same if one.entries >= entries), same[-1])
