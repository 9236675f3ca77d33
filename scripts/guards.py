"""Takes each guard against hostile input out, in a copy of the package, and sees whether its test then fails.

A guard that no test misses is a guard that the next change may lose. `python scripts/guards.py` tries all, a few
seconds each; words choose among them. Exit code 1 if one survives, or if its text is no longer in the file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Guard:
    """against: the attack. text: in the file exactly once. instead: what takes its place. test: below tests/."""

    against: str
    file: str
    text: str
    instead: str
    test: str


_ARCHIVES = "formats/test_archive_attacks.py::"
_CONTAINERS = "formats/test_containers.py::"
_MARKUP = "formats/test_markup_guards.py::"
_HOSTILE = "formats/test_hostile_parsers.py::"
_LIE = _HOSTILE + "test_a_lie_costs_its_own_item_only_and_not_all_our_memory"
_FOLDER = "sources/test_folder_source.py::"
_HTTP = "sources/test_http_source.py::"
_FAULTS = "sources/test_http_faults.py::"
_FOLLOW = "sources/test_http_follow.py::"

GUARDS = [
    # Archives
    Guard("bomb: bytes", "formats/stream.py", "if self.spent > self.expanded_bytes:", "if False:",
          _ARCHIVES + "test_what_expands_to_more_than_the_limit_is_a_bomb_however_little_it_is_packed"),
    Guard("bomb: ratio", "formats/stream.py", "layer_out > self.ratio * max(layer_in, 1)", "False",
          _CONTAINERS + "test_the_ratio_alone_makes_a_bomb"),
    Guard("bomb: members", "formats/stream.py", "if self.opened > self.members:", "if False:",
          _CONTAINERS + "test_depth_and_members_are_limited"),
    Guard("bomb: depth", "formats/item.py", "if depth > self.limits.depth:", "if False:",
          _CONTAINERS + "test_depth_and_members_are_limited"),
    Guard("bomb: overlapping entries", "formats/zip_archive.py", "if end > start:", "if False:",
          _CONTAINERS + "test_overlapping_entries_are_refused"),
    Guard("bomb: overlapping parts of a document", "formats/package.py",
          "if entry.header + _LOCAL.size + entry.packed > start:", "if False:",
          "formats/test_office_documents.py::test_entries_that_overlap_are_a_bomb"),
    Guard("bomb: parts of a document", "formats/package.py",
          "self._budget.expand(len(block), self.taken, self.given)", "pass",
          "formats/test_office_documents.py::test_a_bomb_inside_a_document_stops_it"),
    Guard("bomb: members of a 7z", "formats/seven_zip.py", "context.limits.members", "1 << 40",
          "formats/test_seven_zip.py::test_more_members_than_allowed_are_a_bomb"),
    Guard("a link in a zip", "formats/zip_archive.py",
          "return info.create_system == _UNIX and stat.S_ISLNK(info.external_attr >> 16)", "return False",
          _ARCHIVES + "test_a_link_in_a_zip_is_not_followed_and_its_target_is_no_text"),
    Guard("a link in a tar", "formats/tar_archive.py", "elif info.isreg():", "else:",
          _ARCHIVES + "test_a_hard_link_in_a_tar_gives_no_second_copy"),
    Guard("one name for two members", "formats/member_path.py", "label = _free(step, taken)", "label = step",
          _ARCHIVES + "test_members_of_one_name_are_all_kept_under_names_of_their_own"),
    # XML and PDF
    Guard("XML: entities", "formats/office_xml.py", '"resolve_entities": False', '"resolve_entities": True',
          _MARKUP + "test_no_entity_is_expanded"),
    Guard("XML: outside DTD", "formats/office_xml.py", '"load_dtd": False', '"load_dtd": True',
          _MARKUP + "test_no_outside_dtd_is_opened"),
    Guard("XML: depth", "formats/office_xml.py", '"huge_tree": False', '"huge_tree": True',
          _MARKUP + "test_elements_inside_each_other_end"),
    Guard("XML: depth of text", "formats/xml_tree.py", "elif depth >= DEPTH:", "elif False:",
          "formats/test_xml_text.py::test_depth_is_limited_and_what_lies_above_it_is_kept"),
    Guard("XML: bomb of entities", "formats/xml_text.py", "parser.DefaultHandler, parser.Skipped",
          "parser.DefaultHandlerExpand, parser.Skipped", "formats/test_xml_text.py::test_bombs_are_not_expanded"),
    Guard("Office: a link out", "formats/office_xml.py",
          'local(relation) == "Relationship" and attribute(relation, "TargetMode").lower() != "external"',
          'local(relation) == "Relationship"', _MARKUP + "test_what_a_document_calls_external_is_no_part_of_it"),
    Guard("YAML: aliases", "formats/yaml_toml.py", 'raise Refused("bomb", f"aliases', 'print(f"aliases',
          "formats/test_yaml_toml.py"),
    Guard("PDF: pages", "formats/pdf.py", "shown = min(count, context.limits.pages)", "shown = count",
          "formats/test_pdf_pages.py::test_only_so_many_pages_are_read"),
    # Paths
    Guard("a link out of the folder", "sources/folder.py",
          "if target != root and _inside(target, root) is None:", "if False:",
          _FOLDER + "test_links_inside_the_root_are_followed_and_links_out_of_it_refused"),
    Guard("a FIFO or device", "sources/folder.py",
          "if not stat.S_ISREG(status.st_mode):\n            return", "if False:\n            return",
          _FOLDER + "test_what_is_no_file_is_refused_without_being_opened"),
    Guard("a file swapped for a link", "sources/folder.py", "if inside is None:\n", "if False:\n",
          _FOLDER + "test_an_item_that_changed_after_listing_is_not_read"),
    Guard("a folder swapped for a link", "sources/folder.py",
          "os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC", "os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC",
          _FOLDER + "test_a_folder_swapped_for_a_link_leads_nowhere"),
    # Server-side request forgery
    Guard("SSRF: private addresses", "sources/address.py", "if origin not in self._named:", "if False:",
          _HTTP + "test_a_redirect_into_a_private_network_is_refused"),
    Guard("SSRF: a name that changes", "sources/address.py", "request.url.copy_with(host=address)", "request.url",
          _FAULTS + "test_a_name_is_resolved_once_and_its_checked_address_is_the_one_connected_to"),
    Guard("SSRF: IPv4 inside IPv6", "sources/address.py", "if inner:", "if False:",
          _HTTP + "test_only_addresses_of_the_open_internet_are_public"),
    Guard("SSRF: proxies", "sources/fetch.py", "transport=CheckedTransport(allowed),\n            trust_env=False,", "",
          _HTTP + "test_proxy_variables_are_not_followed"),
    Guard("SSRF: redirects out of http", "sources/fetch.py",
          'if target.scheme not in ("http", "https") or not target.host:', "if False:",
          _HTTP + "test_a_redirect_away_from_http_is_refused"),
    Guard("SSRF: secrets along with a redirect", "sources/fetch.py",
          "self._own_headers if origin_of(url) in self._named else {}", "self._own_headers",
          _HTTP + "test_secrets_are_not_sent_along_with_a_redirect_elsewhere"),
    Guard("SSRF: a listing leads elsewhere", "sources/http_index.py",
          "if url.scheme != base.scheme or origin_of(url) != origin_of(base):", "if False:",
          _FOLLOW + "test_only_what_lies_below_the_uri_is_followed"),
    Guard("SSRF: a sitemap leads elsewhere", "sources/http_index.py",
          'if origin_of(url) not in home or url.scheme not in ("http", "https"):', "if False:",
          _FOLLOW + "test_a_sitemap_may_not_lead_to_another_host_or_out_of_http"),
    Guard("a sitemap with a DTD", "sources/http_index.py", 'raise BadAnswer("http-sitemap", "it has a DTD")', "pass",
          _FOLLOW + "test_what_is_no_sitemap_or_has_a_dtd_is_refused"),
    # The sandbox
    Guard("a parser that opens files", "formats/confine.py", "deny_files(sys.path)", "True",
          "formats/test_sandbox.py::test_a_parser_reaches_no_file_but_its_libraries_where_the_kernel_allows_to_take_them"),
    Guard("a parser that acts", "formats/confine.py", "deny_calls()", "True",
          _HOSTILE + "test_a_parser_that_was_taken_over_reaches_nothing_outside"),
    Guard("a parser that forges items", "formats/sandbox.py", "os.O_RDONLY | os.O_CLOEXEC", "os.O_RDWR | os.O_CLOEXEC",
          _HOSTILE + "test_a_parser_cannot_forge_the_items_that_come_after_its_own"),
    Guard("a parser that knows secrets", "formats/start.py", "env=_environment(folder)",
          "env={**os.environ, **_environment(folder)}",
          "formats/test_sandbox.py::test_nothing_of_the_parent_s_environment_reaches_the_parser"),
    Guard("a parser that eats memory", "formats/confine.py",
          '_limit(resource.RLIMIT_AS, _mapped_bytes() + (memory_mb << 20))', "True",
          "formats/test_sandbox.py::test_a_parser_that_dies_hangs_or_lies_costs_its_own_item_only"),
    Guard("an answer that expands", "formats/answers.py",
          "if _is_compressed(message.metadata.to_pybytes()):", "if False:",
          _LIE + "[expanding zstd-compressed]"),
    Guard("an answer without end", "formats/answers.py", "if self._waiting_bytes > self._memory_bytes:", "if False:",
          _LIE + "[hoard-more than it could have held]"),
    Guard("an answer of gigabytes", "formats/sandbox.py", "min(allowed, self._limits.memory_mb << 20)", "allowed",
          _LIE + "[huge-frame-more than its input could hold]"),
    Guard("an answer of another kind", "formats/answers.py",
          'if not set(records.column("kind").unique().to_pylist()) <= _KINDS:', "if False:",
          _LIE + "[kind-unknown kind]"),
    Guard("columns that nobody asked for", "formats/answers.py",
          "if not reader.schema.equals(schema, check_metadata=True):", "if False:", _LIE + "[ids-another schema]"),
    Guard("an item announced for ever", "formats/sandbox.py", "if begun > before + len(numbers):",
          "if False:", _LIE + "[begin-again-not asked for]"),
    Guard("an answer that is none", "formats/sandbox.py", "if not all(map(answers.has, numbers)):", "if False:",
          _LIE + "[done-is not]"),
]  # fmt: skip


def survivors(guards: Sequence[Guard]) -> Iterator[tuple[Guard, str]]:
    """Guards that can be taken out without a test that fails, and why that is known."""
    with tempfile.TemporaryDirectory(prefix="sheaf-guards-") as folder:
        for guard in guards:
            copy = Path(folder) / "src"
            shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
            file = copy / "sheaf" / guard.file
            code = file.read_text()
            if code.count(guard.text) != 1:
                yield guard, f"its text is {code.count(guard.text)} times in {guard.file}"
            else:
                file.write_text(code.replace(guard.text, guard.instead))
                if _passes(guard.test, copy):
                    yield guard, f"{guard.test} passes without it"
            shutil.rmtree(copy)


def _passes(test: str, source: Path) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=60", f"tests/{test}"]
    surroundings = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True).returncode not in (1, -6, -9)


def main(words: Sequence[str]) -> int:
    chosen = [guard for guard in GUARDS if not words or any(word in guard.against for word in words)]
    found = list(survivors(chosen))
    for guard, why in found:
        print(f"{guard.against}: {why}")
    print(f"{len(chosen) - len(found)} of {len(chosen)} guards are missed when they are gone")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
