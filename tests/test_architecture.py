"""Rooms import only what lies to their left (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "sheaf"
BESIDE = {
    "errors",
    "files",
    "kernel",
    "kernel_code",
    "recipe",
    "recipe_data",
    "recipe_file",
    "recipe_marks",
    "recipe_yaml",
    "recipe_errors",
    "console",
    "privacy",
    "engine",
    "rooms",
    "runs",
    "processes",
    "allowance",
}
LEFT_TO_RIGHT = [
    "sources",
    "formats",
    "corpus",
    "prepare",
    "order",
    "model",
    "parallel",
    "train",
    "forecast",
    "tune",
    "report",
    "scan",
    "demo",
]
TOP = {
    "api",
    "api_objects",
    "cli",
    "cli_corpus",
    "cli_plan",
    "cli_tune",
    "cli_words",
    "init",
    "init_datasets",
    "init_tables",
    "doctor",
    "drawing",
    "show",
    "show_plan",
    "show_preview",
    "show_rules",
    "show_tune",
    "shell",
    "__main__",
    "__init__",
}
ROOMS = sorted(
    p.name.removesuffix(".py") for p in SOURCE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
)


def imported_rooms(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"sheaf.{a.name}" for a in node.names] if node.module == "sheaf" else [node.module]
        found |= {n.split(".")[1] for n in names if n.startswith("sheaf.")}
    return found


def test_every_room_has_its_place() -> None:
    assert set(ROOMS) <= BESIDE | set(LEFT_TO_RIGHT) | TOP, "say in docs/architecture.md and here where it belongs"


@pytest.mark.parametrize("room", LEFT_TO_RIGHT)
def test_a_room_knows_only_rooms_to_its_left(room: str) -> None:
    allowed = BESIDE | set(LEFT_TO_RIGHT[: LEFT_TO_RIGHT.index(room) + 1])
    for path in (SOURCE / room).rglob("*.py"):
        beyond = imported_rooms(path) - allowed - {"__version__"}
        if room == "demo":  # it plays the user, and may use what a user has
            beyond -= TOP
        assert not beyond, f"{path.relative_to(SOURCE)} imports {sorted(beyond)}"


def test_what_stands_beside_knows_no_room() -> None:
    for name in BESIDE - {"rooms"}:  # `rooms` looks functions up in the API by name
        path = SOURCE / f"{name}.py"
        for file in [path] if path.exists() else (SOURCE / name).rglob("*.py"):
            assert not imported_rooms(file) & set(LEFT_TO_RIGHT), file


@pytest.mark.parametrize("module", ["sheaf.prepare.pipeline", "sheaf.prepare.read", "sheaf.prepare.score"])
def test_preparing_a_folder_loads_neither_a_compiler_nor_a_client(module: str) -> None:
    """Each takes 0.1 to 0.4 s of every process; `tests/order` says the same of its room."""
    dear = ("numba", "obstore", "httpx", "torch", "py3langid", "ray", "cyclopts", "transformers")
    code = f"import sys, {module}; print(*[name for name in {dear} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.split() == []
