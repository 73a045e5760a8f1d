"""The house rules that a machine can check: imports one way, short files, docstrings."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "flaxlm"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))

# What each room may import, beside itself. `errors` and `progress` are open to all.
OUTER = {"__main__", "verbs", "train", "evaluate", "generate", "embed", "sampling", "prompts"}
OUTER |= {"interop", "report", "compare", "seeds", "beam", "decoding", "glue", "flags"}
OUTER |= {"likelihood", "lm_eval_adapter"}
ALLOWED = {
    "errors": set(),
    "progress": set(),
    "tree": set(),
    "sharding": {"tree"},
    "data": set(),
    "tasks": {"data"},
    "models": {"sharding", "tree"},
    "objectives": {"data", "tasks", "models", "sharding", "tree"},
    "interop": {"data", "models", "sharding", "tree"},
    "training": {"interop", "objectives", "models", "tasks", "data", "sharding", "tree"},
    "sampling": set(),
    "beam": set(),
    "prompts": {"data"},
    "decoding": {"sampling", "beam", "prompts", "data"},
    "generate": {"decoding", "prompts", "data"},
    "likelihood": {"prompts", "objectives", "tasks", "data", "sharding"},
    "embed": {"prompts", "tasks", "models", "data"},
    "evaluate": {
        "generate",
        "likelihood",
        "training",
        "tasks",
        "objectives",
        "models",
        "sharding",
        "tree",
    },
    "compare": {"tasks"},
    "report": {"compare", "evaluate", "tasks", "data"},
    "seeds": {"compare", "report", "train", "training"},
    "train": {
        "compare",
        "report",
        "evaluate",
        "training",
        "objectives",
        "models",
        "sharding",
        "tree",
    },
    "verbs": {
        "train",
        "report",
        "embed",
        "evaluate",
        "generate",
        "training",
        "interop",
        "models",
        "sharding",
        "tree",
    },
    "glue": {"verbs", "train", "report", "training", "tasks", "data"},
    "flags": {"training"},
    "__main__": {"flags", "glue", "verbs", "train", "seeds", "training", "generate", "embed"},
    "lm_eval_adapter": {"verbs", "generate", "likelihood", "tasks", "sharding"},
    "__init__": OUTER,
}


def imported(path: pathlib.Path) -> list[str]:
    """Return every module that a file imports, at whatever depth."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = room(path)
    for name in imported(path):
        if name.split(".")[0] != "flaxlm" or name == "flaxlm.__version__":
            continue
        there = name.split(".")[1]
        assert there in ALLOWED[here] | {here, "errors", "progress"}, f"{here} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_foreign_frameworks_and_no_jax_where_data_is_read(path):
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & {"torch", "transformers", "tensorflow", "keras"}
    if room(path) in ("data", "tasks"):
        assert not roots & {"jax", "flax", "optax", "orbax"}


@pytest.mark.parametrize("path", FILES + TESTS, ids=lambda p: p.name)
def test_files_stay_under_400_lines(path):
    assert len(path.read_text().splitlines()) < 400


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_everything_public_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name}: module"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"
            for member in getattr(node, "body", ()):
                public = isinstance(member, ast.FunctionDef) and not member.name.startswith("_")
                if isinstance(node, ast.ClassDef) and public and member.name != "setup":
                    assert ast.get_docstring(member), f"{path.name}: {node.name}.{member.name}"


def test_configs_import_nothing_of_the_package():
    for path in (ROOT / "configs").glob("*.py"):
        assert {name.split(".")[0] for name in imported(path)} <= {"ml_collections"}, path.name


def test_experiments_only_call_the_command_line_or_read_results():
    for path in (ROOT / "experiments").rglob("*.sh"):
        assert "import flaxlm" not in path.read_text(), path


def test_the_command_line_answers_before_jax_is_imported():
    code = (
        "import sys\nfrom flaxlm.__main__ import run\nrun(['--help'])\n"
        "assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m flaxlm" in done.stdout
