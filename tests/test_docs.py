"""The documentation says what the code knows."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_the_recipe_is_what_its_models_say() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "recipe_page.py"))["page"]()
    assert (ROOT / "docs" / "recipe.md").read_text() == written, "run: python scripts/recipe_page.py"


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_no_page_links_to_what_is_not_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_the_recipe_in_the_readme_is_a_recipe(tmp_path: Path) -> None:
    from sheaf import recipe_file

    yaml = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert yaml is not None
    assert len(yaml[1].strip().splitlines()) <= 10
    recipe = recipe_file.loads(yaml[1], tmp_path)
    assert [s.name for s in recipe.sources] == ["notes", "exports", "tickets", "mail"]


def test_every_verb_that_the_readme_names_exists() -> None:
    from sheaf import cli

    verbs = set(re.findall(r"^sheaf ([a-z]+)", (ROOT / "README.md").read_text(), re.M))
    assert verbs
    assert all(hasattr(cli, verb) for verb in verbs)
