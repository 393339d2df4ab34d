"""The house rules: who imports whom and how, file lengths, what ships, and that nothing personal is in the tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "modeling_pacl": "pacl",
    "training": "pacl.training",
    "evaluation": "pacl.evaluation",
    "hub_cards": "pacl.hub_cards",
}
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").glob("*.py"))


def imports(path):
    """Modules that a file imports, relative ones with their dots; and whether at the top level."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node in tree.body


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_folders_are_imported_by_their_installed_names(path):
    own = path.relative_to(ROOT).parts[0]
    for module, _ in imports(path):
        assert module.split(".")[0] not in (*FOLDERS, "recipes"), f"{module}: import it by its installed name"
        if own in FOLDERS and own != "modeling_pacl":
            within = FOLDERS[own]
            assert module != within, f"{module}: import relatively inside a folder"
            assert not module.startswith(f"{within}."), f"{module}: import relatively inside a folder"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_training_and_evaluation_do_not_know_each_other(path):
    folder = path.relative_to(ROOT).parts[0]
    others = {"training": "pacl.evaluation", "evaluation": "pacl.training"}
    if name(path) == "training/__main__.py":  # where the job meets its measurement
        return
    assert not [module for module, _ in imports(path) if module.startswith(others.get(folder, "no such module"))]


@pytest.mark.parametrize("path", sorted((ROOT / "modeling_pacl").glob("*.py")), ids=name)
def test_the_model_imports_torch_and_transformers_alone(path):
    """Its files travel to the Hub as remote code, where nothing of ours is installed."""
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for module, top_level in imports(path):
        if module.startswith("."):
            assert re.fullmatch(r"\.\w+", module), f"{module}: only `from .x import y` travels"
        elif top_level:
            assert module.split(".")[0] in allowed


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_file_opens_with_what_it_does(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_what_ships_stays_under_four_megabytes_and_is_safetensors():
    assets = [path for path in (ROOT / "training" / "assets").rglob("*") if path.is_file()]
    assert assets
    assert sum(path.stat().st_size for path in assets) < 4e6
    assert not [path for path in assets if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5")]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_remote_code_is_trusted(path):
    """To trust it is for the user to say: in our code the argument has no literal truth anywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert not (isinstance(node.value, ast.Constant) and node.value.value), name(path)


def test_no_absolute_path_is_written_down():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for file in listed:
        path = ROOT / file
        if path.suffix not in (".py", ".md", ".yaml", ".toml", "") or not path.is_file() or path == Path(__file__):
            continue
        text = path.read_text()
        assert not re.search(r"(?<![\w.$}:/])/(work|home|root|Users)/", text), file
