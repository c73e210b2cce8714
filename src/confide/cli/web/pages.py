"""The pages: finished HTML from what the book holds. Every text from the ledger is escaped here or below."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from functools import cache
from typing import Any

from confide.cli.web import figures
from confide.cli.web.book import Book, Checked
from confide.ledger import Person, Record
from confide.ledger.detail import ReleaseDetail
from confide.report.format import epsilon, escape, number, percent
from confide.report.page import cards, facts, paragraph

STAMP = "internal, must not leave"
_MOST_EPSILONS = 8  # classes whose tight epsilon is shown; of more, only the dearest
_MOST_ROWS = 500


class Markup(str):
    """HTML made here; everything else in a table is escaped."""

    __slots__ = ()


def css() -> str:
    """Return the style sheet."""
    return _css()


@cache
def _css() -> str:
    base = importlib.resources.files("confide.report").joinpath("page.css").read_text(encoding="utf-8")
    return base + (
        ".bar { display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center; padding: 10px 0; }\n"
        ".bar form { display: inline; margin-left: auto; }\n"
        ".bar a[aria-current] { font-weight: 700; color: var(--ink); text-decoration: none; }\n"
        ".search { display: flex; flex-wrap: wrap; gap: 8px; margin: 10px 0; align-items: center; }\n"
        "input, select, button { font: inherit; font-size: 1rem; padding: 8px 10px; border: 1px solid #6b6b6b;"
        " border-radius: 3px; background: #fff; color: var(--ink); min-height: 42px; max-width: 100%; }\n"
        "input[type=text], input[type=password] { flex: 1 1 240px; min-width: 0; }\n"
        "button { background: var(--link); color: #fff; border-color: var(--link); cursor: pointer; }\n"
        "button.plain { background: none; color: var(--link); border: 0; text-decoration: underline;"
        " padding: 4px 0; }\n"
        ".wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); margin-top: 20px; }\n"
        "input:focus-visible, select:focus-visible, button:focus-visible, a:focus-visible"
        " { outline: 3px solid #D55E00; outline-offset: 1px; }\n"
        ".take { font-size: .88rem; margin: -4px 0 14px; }\n"
        ".bad { color: var(--warn); font-weight: 700; }\n"
        "td.left { overflow-wrap: break-word; min-width: 0; max-width: 46ch; }\n"
        "td.left:last-child { min-width: 0; }\n"
        "td:first-child a { display: inline-block; min-width: 11ch; max-width: 46ch; overflow-wrap: anywhere; }\n"
        "td time { white-space: nowrap; }\n"
        "td .long { display: inline-block; min-width: 30ch; }\n"
        ".login { max-width: 480px; }\n"
        "@media (max-width: 600px) {\n"
        " .cards-on-phones { overflow-x: visible; }\n"
        " .cards-on-phones :is(table, tbody, tr) { display: block; }\n"
        " .cards-on-phones thead { display: none; }\n"
        " .cards-on-phones tr { border-bottom: 1px solid var(--rule); padding: 8px 0; }\n"
        " .cards-on-phones td, .cards-on-phones td.right { display: grid; grid-template-columns: 12ch 1fr;"
        " gap: 0 10px; border: 0; padding: 1px 0; text-align: left; max-width: none; white-space: normal;"
        " overflow-wrap: anywhere; }\n"
        " .cards-on-phones td::before { content: attr(data-label); color: var(--soft); }\n"
        " td .long, td:first-child a { min-width: 0; }\n"
        "}\n"
    )


def whole(title: str, body: str, *, here: str = "", signed_in: bool = True) -> str:
    """Put a page together."""
    places = (("/", "Overview"), ("/flows", "Flows"), ("/journal", "Journal"))
    links = "".join(
        f'<a href="{path}"{" aria-current=" + chr(34) + "page" + chr(34) if path == here else ""}>{name}</a>'
        for path, name in places
    )
    out = '<form method="post" action="/logout"><button class="plain">Log out</button></form>'
    bar = f'<nav class="bar" aria-label="Pages">{links}{out}</nav>' if signed_in else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)} ({STAMP})</title><link rel="stylesheet" href="/page.css">'
        '<link rel="icon" href="/icon.svg" type="image/svg+xml"></head>'
        f'<body><div class="page"><div class="stamp" role="note"><p>{STAMP}</p></div>{bar}'
        f"<main><h1>{escape(title)}</h1>{body}</main></div></body></html>\n"
    )


def login(*, wrong: bool = False) -> str:
    """Ask for the token."""
    said = paragraph("That is not the token of this server.", "bad") if wrong else ""
    return whole(
        "Ledger",
        f'<div class="login">{said}<p>The token stands in the terminal where <code>confide ledger serve</code> was '
        'started.</p><form method="post" action="/login" class="search"><input type="password" name="token" '
        'aria-label="Token" autocomplete="off" required autofocus><button>Log in</button></form></div>',
        signed_in=False,
    )


def problem(title: str, text: str, *, signed_in: bool) -> str:
    """Say that something was refused."""
    return whole(title, paragraph(text) + '<p><a href="/">Back to the overview</a></p>', signed_in=signed_in)


def overview(book: Book, *, said: str = "") -> str:
    """Cap, releases, balances, search."""
    records, spread, rule = book.records(), book.distribution(), book.ledger.rule
    counting = sum(r.state != "aborted" for r in records)
    open_ = sum(r.state in ("reserved", "started") for r in records)
    top = cards(
        [
            (f"{rule.epsilon:g}", f"lifetime cap: epsilon at delta {number(rule.delta)}"),
            (f"{spread.people:,}", "contributors known"),
            (f"{counting:,}", "releases charged"),
            (f"{open_:,}", "of them still open"),
            (percent(spread.quantiles[3]), "of a balance used by the median contributor"),
            (percent(spread.quantiles[-1]), "used by whoever has used most"),
        ]
    )
    search = (
        "<h2>Look up a contributor</h2>"
        + (paragraph(said, "bad") if said else "")
        + '<form method="post" action="/search" class="search"><select name="kind" aria-label="What is given">'
        '<option value="id">id as in the data</option><option value="pseudonym">pseudonym</option></select>'
        '<input type="text" name="who" aria-label="Contributor" autocomplete="off" spellcheck="false" required '
        'maxlength="512"><button>Look up</button></form>'
        "<p>An id is hashed with the ledger's key on this machine; it is not kept, logged or shown again.</p>"
    )
    drawn = _beside(
        [
            (figures.timeline(records).html, "/download/timeline"),
            (figures.balances(spread).html, "/download/balances"),
        ]
    )
    return whole("Ledger", top + search + drawn + _releases(records), here="/")


def _releases(records: Sequence[Record]) -> str:
    if not records:
        return "<h2>Releases</h2>" + paragraph("Nothing was reserved yet.")
    rows = [
        (
            Markup(f'<a href="/releases/{escape(r.id)}">{escape(r.release)}</a>'),
            r.data_set,
            r.state,
            _time(r.created),
            f"{r.admitted:,}",
            f"{r.dropped:,}",
        )
        for r in reversed(records[-_MOST_ROWS:])
    ]
    more = (
        paragraph(f"The last {_MOST_ROWS} of {len(records):,}; all of them are in the CSV.")
        if len(records) > _MOST_ROWS
        else ""
    )
    return (
        "<h2>Releases</h2>"
        + table(("release", "data set", "state", "reserved (UTC)", "admitted", "left out"), rows, right=(4, 5))
        + more
        + '<p class="take"><a href="/download/releases.csv">All releases as CSV</a></p>'
    )


def release(book: Book, found: ReleaseDetail) -> str:
    """One release: its record, its price by class, its receipt, and its certificate where the folder is known."""
    r = found.record
    top = facts(
        [
            ("data set", r.data_set),
            ("state", r.state),
            ("reserved (UTC)", r.created),
            ("contributors admitted", f"{r.admitted:,}"),
            ("left out for lack of balance or consent", f"{r.dropped:,}"),
            *[
                (name, value)
                for name, value in (
                    ("recipient", found.recipient),
                    ("purpose", found.purpose),
                    ("reserved by the database account", found.owner),
                    ("part of the joint release", found.joint),
                )
                if value
            ],
            ("reservation", r.id),
            ("SHA-256 of what left", r.release_hash or "nothing has left"),
        ]
    )
    shown = found.classes if len(found.classes) <= _MOST_EPSILONS else (found.dearest,)
    tight = {c.number: found.epsilon(c) for c in shown}
    rows = [
        (
            str(c.number),
            f"{c.admitted:,}",
            percent(c.share, up=True),
            epsilon(tight[c.number]) if c.number in tight else "–",
            Markup(f'<span class="long">{escape(_mechanism(c.guarantee))}</span>'),
        )
        for c in found.classes
    ]
    classes = "<h2>What it costs</h2>" + table(
        ("class", "contributors", "of a balance", f"epsilon at {number(found.delta)}", "mechanism"),
        rows,
        right=(0, 1, 2, 3),
    )
    drawn = _beside([(figures.tradeoff(*found.tradeoff()).html, f"/download/release-{r.id}")])
    receipt = ""
    if found.receipt is not None:
        receipt = "<h2>Receipt</h2>" + facts(
            [
                ("journal entry", str(found.receipt.seq)),
                ("hash", found.receipt.hash),
                ("seal", found.receipt.seal),
                ("ledger", found.receipt.ledger),
            ]
        )
    return whole(r.release, top + classes + drawn + receipt + _certificate(book, found))


def _linked(linkage: Any) -> str:
    """Say on what rule a certificate's guarantees per person rest, and what is left where it fails."""
    if not isinstance(linkage, dict):
        return "not stated"
    rows = [row for row in linkage.get("wrong_links", []) if isinstance(row, dict)]
    said = [
        f"with {row.get('entries')} entries, split in 2: epsilon {epsilon(float(row.get('split_in_2', 'nan')))}"
        for row in rows
    ]
    return "; ".join([str(linkage.get("rule", "")), *said])


def _mechanism(guarantee: Any) -> str:
    return "; ".join(f"{steps:,} × {_in_words(part.to_dict())}" for part, steps in guarantee.parts)


def _in_words(values: dict[str, Any]) -> str:
    kind = str(values.pop("mechanism")).replace("-", " ")
    values.pop("relation", None)
    said = [
        f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in values.items()
        if value is not None and not isinstance(value, dict)
    ]
    return f"{kind} ({', '.join(said)})" if said else kind


def _time(created: str) -> Markup:
    shown = escape(created[:16].replace("T", " "))
    return Markup(f"<time>{shown}</time>")


def _certificate(book: Book, found: ReleaseDetail) -> str:
    held = book.certificate(found.record.id)
    if held is None:
        said = (
            "The folder of releases that this server was given holds no certificate of it."
            if book.releases is not None
            else "Start the server with --releases FOLDER to see the facts of its certificate here."
        )
        return "<h2>Certificate</h2>" + paragraph(said)
    classes = [c for c in held.get("classes", []) if isinstance(c, dict)]
    pairs = [
        (name, str(held.get(name, "")))
        for name in ("name", "kind", "created", "unit_meaning", "relation_meaning", "adversary", "delta", "precision")
    ]
    pairs += [
        ("largest epsilon of a class", str(max((c.get("epsilon", 0) for c in classes), key=float, default="–"))),
        ("assumed public", "; ".join(str(a.get("what", a)) for a in held.get("assumed_public", [])) or "nothing"),
        ("how people were linked", _linked(held.get("linkage"))),
        ("not covered", "; ".join(map(str, held.get("not_covered", []))) or "nothing"),
        ("stamps", "; ".join(map(str, held.get("stamps", []))) or "none"),
    ]
    return "<h2>Certificate</h2>" + facts(pairs)


def person(found: Person, used: list[float], epsilons: list[float], *, handle: str) -> str:
    """One contributor: what is left, and every release they were in."""
    left = found.remaining
    if not left.known:
        return whole(
            "One contributor",
            paragraph("The ledger has never seen this contributor: their balance is untouched.")
            + '<p><a href="/">Look up another</a></p>',
        )
    top = cards(
        [
            (percent(max(0.0, 1 - left.used)), "of the balance is left, by the rule that admits"),
            (epsilon(left.epsilon), f"epsilon of everything so far at delta {number(left.delta)}"),
            (f"{left.cap_epsilon:g}", "lifetime cap (epsilon)"),
            (str(left.releases), "releases charged"),
        ]
    )
    caps = [(c.name, c.kind, f"{c.epsilon:g} at {number(c.delta)}", percent(c.used)) for c in left.caps]
    beside = (
        table(("cap beside it", "kind", "epsilon", "used"), caps, right=(2, 3))
        if caps
        else paragraph("No further cap applies.")
    )
    about = facts([("pseudonym", found.pseudonym), ("consent level", left.level)]) + (
        paragraph("Memberships were erased: epsilon is a bound from the sums that stayed.", "bad")
        if left.erased
        else ""
    )
    rows = [
        (
            Markup(f'<a href="/releases/{escape(s.reservation)}">{escape(s.release)}</a>'),
            s.data_set,
            s.state,
            _time(s.created),
            epsilon(e),
            percent(u),
        )
        for s, u, e in zip(found.spends, used, epsilons, strict=True)
    ]
    drawn = _beside([(figures.course(found, used, epsilons).html, f"/download/person-{handle}")])
    listed = table(
        ("release", "data set", "state", "reserved (UTC)", "epsilon alone", "used after it"), rows, right=(4, 5)
    )
    return whole("One contributor", top + about + drawn + "<h2>Releases</h2>" + listed + "<h2>Caps</h2>" + beside)


def flows(book: Book) -> str:
    """The register of information flows."""
    rows = [
        (
            Markup(f'<a href="/releases/{escape(f.reservation)}">{escape(f.release)}</a>')
            if f.reservation
            else f.release,
            f.sender or "–",
            f.recipient or "–",
            f.subject,
            ", ".join(f.attributes) or "–",
            f.purpose or "–",
            "derived: costs nothing" if f.derived else number(bits),
            f.state,
        )
        for f, bits in book.flows()
    ]
    heads = ("release", "from", "to", "about", "attributes", "purpose", "at most (bits a person)", "state")
    body = (
        table(heads, rows[::-1], right=(6,)) + '<p class="take"><a href="/download/flows.csv">As CSV</a></p>'
        if rows
        else paragraph("Nothing has flowed yet.")
    )
    lead = paragraph(
        "Who receives what about whom. The bound is on what the release tells about one contributor's data, in bits, "
        "whatever else the recipient knows."
    )
    return whole("Information flows", lead + body, here="/flows")


def journal(book: Book, checked: Checked | None) -> str:
    """The state of the journal, and a button that checks everything."""
    end = book.end()
    state = facts(
        [
            ("entries", f"{end['seq']:,}"),
            ("last entry (UTC)", end["at"]),
            ("hash of the last entry", end["hash"]),
            ("ledger", book.ledger.id),
        ]
    )
    if checked is None:
        said = paragraph("Not checked since this server was started.")
    else:
        said = paragraph(
            f"{'Checked' if checked.good else 'DIFFERS'} at entry {checked.entry:,}: {checked.text}",
            "" if checked.good else "bad",
        )
    button = '<form method="post" action="/verify" class="search"><button>Verify everything now</button></form>'
    lead = paragraph(
        "Verifying follows the chain of the whole journal and computes every balance anew; for millions of "
        "contributors it takes minutes."
    )
    return whole("Journal", state + "<h2>Verification</h2>" + said + lead + button, here="/journal")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return a table, each row a card on a phone; texts are escaped unless made here."""

    def cell(i: int, value: str) -> str:
        text = value if isinstance(value, Markup) else escape(value)
        return f'<td class="{"right" if i in right else "left"}" data-label="{escape(heads[i])}">{text}</td>'

    head = "".join(
        f'<th scope="col" class="{"right" if i in right else "left"}">{escape(h)}</th>' for i, h in enumerate(heads)
    )
    body = "".join("<tr>" + "".join(cell(i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    return (
        '<div class="scroll cards-on-phones" tabindex="0" role="region" aria-label="Table"><table><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _beside(drawn: Sequence[tuple[str, str]]) -> str:
    return (
        '<div class="columns wide">'
        + "".join(
            f'<div>{figure}<p class="take">Take away: <a href="{path}.svg">SVG</a> '
            f'<a href="{path}.csv">CSV</a></p></div>'
            for figure, path in drawn
        )
        + "</div>"
    )
