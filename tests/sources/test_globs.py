"""What include and exclude patterns mean."""

from __future__ import annotations

import fnmatch
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf.sources.globs import Selection, compile_globs


def matches(pattern: str, path: str) -> bool:
    return compile_globs([pattern]).fullmatch(path) is not None


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("**/*", ["a", "a/b", ".hidden", "a/.b/c\nd"], []),
        ("**", ["a", "a/b/c"], []),
        ("**/*.md", ["a.md", "x/a.md", "x/y/.md"], ["a.mdx", "a.md/b", "amd"]),
        ("*.md", ["a.md"], ["x/a.md"]),
        ("docs/**", ["docs/a", "docs/a/b"], ["docs2/a", "x/docs/a"]),
        ("docs/", ["docs/a", "docs/a/b"], ["docs2/a"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "ab"]),
        ("a/**/**/b", ["a/b", "a/x/b"], ["ab"]),
        ("./a/*", ["a/b"], ["a/b/c"]),
        ("file[0-9].txt", ["file3.txt"], ["filex.txt", "file33.txt"]),
        ("[!a]", ["b"], ["a", "/"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("[z-a]", [], ["z", "a", "-"]),
        ("[^a]", ["^", "a"], ["b"]),
        ("a[", ["a["], ["a"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("a**b", ["ab", "axb"], ["a/b"]),
        ("(x|y).+", ["(x|y).+"], ["x.+"]),
        ("Ünï/*", ["Ünï/ß"], []),
    ],
)
def test_patterns_mean_what_their_description_says(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [p for p in yes if not matches(pattern, p)] == []
    assert [p for p in no if matches(pattern, p)] == []


NAMES = st.text(alphabet="ab.[]!-^*?", min_size=1, max_size=6).filter(lambda n: n != "**")


@settings(max_examples=400, deadline=None)
@given(NAMES, st.text(alphabet="ab.[]!-^*?", min_size=1, max_size=5))
def test_a_single_name_matches_as_fnmatch_says(pattern: str, name: str) -> None:
    # An independent judge for one part of a path, where nothing crosses a slash.
    assert matches(pattern, name) == bool(re.fullmatch(fnmatch.translate(pattern), name))


def walk(pattern: list[str], path: list[str]) -> bool:
    """The plain recursive meaning of `**`, as an oracle."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(path)
        return walk(pattern[1:], path) or (bool(path) and walk(pattern, path[1:]))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and walk(pattern[1:], path[1:])


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(["**", "*", "a", "b*", "?"]), min_size=1, max_size=5),
    st.lists(st.sampled_from(["a", "b", "ba", "c"]), min_size=1, max_size=5),
)
def test_stars_over_folders_match_as_the_recursive_definition_says(pattern: list[str], path: list[str]) -> None:
    assert matches("/".join(pattern), "/".join(path)) == walk(pattern, path)


def test_exclude_wins_over_include_and_whole_folders_are_pruned() -> None:
    selection = Selection.of(["**/*.md"], ["**/draft/**", "x.md", "old/"])
    assert selection.wants("a/b.md") and not selection.wants("x.md") and not selection.wants("q/draft/b.md")
    assert selection.prunes("q/draft") and selection.prunes("old") and not selection.prunes("q")


def test_no_include_selects_nothing() -> None:
    assert not Selection.of([], []).wants("a")


def test_a_row_of_stars_costs_no_more_than_one() -> None:
    begun = time.perf_counter()
    assert not matches("*" * 40 + "b", "a" * 4000)
    assert time.perf_counter() - begun < 2
