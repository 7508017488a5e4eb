"""The pages of documentation: their examples run, their links lead somewhere, their code stands between fences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs import ROOT, Block, blocks, indented, need_of, run_python

PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if path.is_file()
)
EXAMPLES = [page for page in PAGES if any(block.is_run for block in blocks(page))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", EXAMPLES)
def test_examples_run_in_order(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    for block in blocks(page):
        if block.is_run:
            run_python(block.text, block, names)


def anchors(page: Path) -> set[str]:
    """What a link to a heading can end in."""
    fenced, found = False, set()
    for row in page.read_text(encoding="utf-8").splitlines():
        fenced ^= row.startswith("```")
        if not fenced and row.startswith("#"):
            words = re.sub(r"[^\w\- ]", "", row.lstrip("#").strip().lower())
            found.add(words.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/") or page == "README.md"])
def test_the_index_knows_every_page(page: str) -> None:
    if page.startswith("docs/evaluation/") or page in ("README.md", "docs/README.md"):
        return
    assert f"]({Path(page).name})" in (ROOT / "docs/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_no_command_is_without_a_test(page: str) -> None:
    assert indented(page) == [], "code stands between fences"
    assert all(need_of(block) for block in blocks(page))


def test_blocks_are_found_with_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n```bash\nmrb doctor  # tells\n\nmrb eval \\\n    --tasks x\n```\n\n```python run\nx = 1\n```\n"
    )
    first, second = blocks("page.md")
    assert first.commands == ["mrb doctor", "mrb eval --tasks x"]
    assert (first.line, first.language, first.is_run) == (4, "bash", False)
    assert second == Block(page, 11, "python run", "x = 1\n")
    assert second.is_run
    page.write_text("```bash\nmrb doctor\n")
    with pytest.raises(ValueError, match="no end"):
        blocks("page.md")


def test_code_by_indentation_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.ROOT", tmp_path)
    text = "Text\n\n    mrb doctor\n\n- item\n\n    more of it\n\nText\nthat\n    goes on\n\n```\n\n    inside\n```\n"
    (tmp_path / "page.md").write_text(text)
    assert indented("page.md") == ["page.md:3"]
