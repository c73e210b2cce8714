"""The docs have a page for every model and method that a study file can name: when to use it, what it costs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from confide.nn.registry import names
from confide.studies import load_study
from confide.studies.file import OPTIMIZERS
from confide.studies.training_section import TrainingSection

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [page for room in ("methods", "architectures", "evaluation") for page in sorted((DOCS / room).glob("*.md"))]
MODELS = [name for name in names() if not name.endswith("for a test")]


@pytest.mark.parametrize("page", PAGES, ids=[f"{page.parent.name}/{page.stem}" for page in PAGES])
def test_a_page_says_in_one_line_how_when_and_for_what_price(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    heads = re.findall(r"^\*(One line|When|Cost|Source)\*: \S", text, re.MULTILINE)
    assert heads == ["One line", "When", "Cost", "Source"]
    overview = {"methods": "methods.md", "architectures": "architectures.md", "evaluation": "evaluate_models.md"}
    assert f"{page.parent.name}/{page.stem}\n" in (DOCS / overview[page.parent.name]).read_text(encoding="utf-8")


def _one_line(room: str) -> str:
    texts = [page.read_text(encoding="utf-8") for page in (DOCS / room).glob("*.md")]
    return "\n".join(text[text.index("*One line*") : text.index("*When*")] for text in texts)


def test_nothing_that_a_study_file_can_name_is_without_a_page() -> None:
    models, methods = _one_line("architectures"), _one_line("methods")
    assert [name for name in MODELS if f'"{name}"' not in models] == []
    keys = [*TrainingSection.model_fields, "clip_quantile", "correlation"]
    assert [key for key in keys if f"{key} = " not in methods] == []
    assert [name for name in OPTIMIZERS if name in ("dp-adam", "sgld") and f'"{name}"' not in methods] == []


def test_the_study_of_masks_that_the_page_shows_is_whole(tmp_path: Path) -> None:
    page = (DOCS / "study_file.md").read_text(encoding="utf-8")
    section = page[page.index("## Masks: a class for every pixel") : page.index("## Numbers as labels")]
    (text,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    (tmp_path / "study.toml").write_text(text)
    assert load_study(tmp_path / "study.toml").model.name == "unet"
    first = page[: page.index("## Methods of training")]
    assert "| mask" in first and all(name in first for name in ("unet", "monet", "graphsage"))


def test_no_page_has_the_name_of_one_that_sphinx_writes_itself() -> None:
    assert {page.stem for page in DOCS.glob("*.md")}.isdisjoint({"search", "genindex", "modindex", "py-modindex"})
