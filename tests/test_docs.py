"""The documentation says what the code knows."""

from __future__ import annotations

import json
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


def test_the_tables_of_the_pages_on_intake_are_what_the_code_says() -> None:
    pages = runpy.run_path(str(ROOT / "scripts" / "intake_pages.py"))
    for name in pages["PAGES"]:
        assert (ROOT / "docs" / name).read_text() == pages["page"](name), "run: python scripts/intake_pages.py"


def test_every_kind_of_place_is_on_its_page() -> None:
    from sheaf.sources.registry import KINDS

    text = (ROOT / "docs" / "places.md").read_text().replace("sqlalchemy+", "sqlalchemy://")
    assert [scheme for scheme in KINDS if f"{scheme}://" not in text] == []


@pytest.mark.parametrize("page", ["places.md", "intake.md", "formats.md"])
def test_every_link_to_a_part_of_a_page_leads_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / (target or page)).read_text(), re.M)
        assert anchor in [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings], anchor


def examples(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


def test_every_source_on_the_page_of_places_is_one(tmp_path: Path) -> None:
    from sheaf import recipe_file
    from sheaf.sources import open_source

    listed = [f"name: t\nsources:\n{block}" for block in examples("places.md")]
    sources = [spec for text in listed for spec in recipe_file.loads(text, tmp_path).sources]
    assert len(sources) > 20
    assert [open_source(spec).name for spec in sources] == [spec.name for spec in sources]  # nothing is connected yet


def test_every_part_of_a_recipe_on_the_page_of_intake_is_one(tmp_path: Path) -> None:
    from sheaf import recipe_file

    blocks = examples("intake.md")
    assert {block.partition(":")[0] for block in blocks} == {"prepare", "sources"}
    for block in blocks:
        rest = "" if block.startswith("sources:") else "sources: [{name: documents, uri: ./data}]\n"
        recipe_file.loads(f"name: t\n{rest}{block}", tmp_path)


def test_every_command_on_the_page_of_intake_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sheaf import cli

    data = tmp_path / "data"
    data.mkdir()
    for n in range(30):
        line = f"Note {n} on the kettle of harbour {n * n}, which is long enough to stay.\n"
        (data / f"notes-{n}.txt").write_text(line * 9)
    (data / "haiku.txt").write_text("old pond")
    asked, answered = {"role": "user", "content": "Who is there?"}, {"role": "assistant", "content": "Nobody is."}
    row = json.dumps({"messages": [asked, answered]}) + "\n"
    (data / "chat.jsonl").write_text(row * 20 + "{broken\n")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "intake.md").read_text(), re.S)
    commands = [line.split("#")[0].split() for block in blocks for line in block.splitlines()]
    assert len(commands) >= 8
    for program, *words in commands:
        assert program == "sheaf"
        code, told = cli.main(words), capsys.readouterr()
        assert code == 0, (words, told.err)
    assert cli.main(["ledger", "--json"]) == 0
    assert '"bad-json"' in capsys.readouterr().out
