"""The house rules that a machine can check: imports one way, short files, docstrings."""

import ast
import functools
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "flaxlm"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# What each room may import, beside itself. These are open to all.
OPEN = {"encoding", "errors", "progress", "untrusted"}
BASE = {"files", "locks", "sharding", "tree"}
ALLOWED = {
    "errors": set(),
    "encoding": set(),
    "progress": set(),
    "processes": set(),
    "untrusted": set(),
    "tree": set(),
    "files": set(),
    "locks": {"files"},
    "sharding": {"tree"},
    "data": {"files"},
    "metrics": set(),
    "models": {"sharding", "tree"},
    "trained": {"data", "models", "sharding"},
    "inference": {"data", "models", "trained", *BASE},
    "tasks": {"data", "files", "metrics", "inference"},
    "objectives": {"data", "tasks", "models", "sharding", "tree"},
    "interop": {"data", "models", "trained", *BASE},
    "training": {
        "trained",
        "interop",
        "objectives",
        "models",
        "tasks",
        "metrics",
        "data",
        "processes",
        *BASE,
    },
    "evaluation": {
        "inference",
        "training",
        "tasks",
        "metrics",
        "objectives",
        "models",
        "data",
        *BASE,
    },
    "train": {"evaluation", "training", "objectives", "models", "processes", *BASE},
    "commands": {
        "train",
        "evaluation",
        "inference",
        "training",
        "interop",
        "tasks",
        "data",
        "models",
        "processes",
        *BASE,
    },
    "lm_eval_adapter": {"training", "inference", "sharding"},
    "__main__": {"commands", "processes", "sharding"},
    "__init__": {"train", "evaluation", "inference", "training", "interop"},
}


@functools.cache
def parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: pathlib.Path) -> list[str]:
    """Return every module that a file imports, at whatever depth."""
    names = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def room(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def test_imports_run_one_way():
    wrong = []
    for path in FILES:
        here = room(path)
        for name in imported(path):
            if name.split(".")[0] != "flaxlm" or name == "flaxlm.__version__":
                continue
            there = name.split(".")[1]
            if there not in ALLOWED[here] | {here} | OPEN:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_who_reads_a_model_knows_nothing_of_training_one():
    readers = [p for p in FILES if room(p) in ("evaluation", "inference", "lm_eval_adapter")]
    readers += [PACKAGE / "training" / f"{name}.py" for name in ("program", "opened", "reading")]
    assert len(readers) > 10
    for path in readers:
        for name in imported(path):
            there = name.removeprefix("flaxlm.training.")
            assert not there.startswith(("step", "optimizer", "state")), f"{path.name}: {name}"


def test_no_foreign_frameworks_and_no_jax_where_data_is_read():
    for path in FILES:
        roots = {name.split(".")[0] for name in imported(path)}
        assert not roots & {"torch", "transformers", "tensorflow", "keras"}, path
        if room(path) in ("data", "tasks"):
            assert not roots & {"jax", "flax", "optax", "orbax"}, path


def test_text_is_read_and_written_as_utf_8():
    for path in FILES:
        for node in ast.walk(parsed(path)):
            name = getattr(getattr(node, "func", None), "attr", "")
            if isinstance(node, ast.Call) and name in ("read_text", "write_text"):
                ours = ast.unparse(node.func.value) in ("files", "Path('/proc/cpuinfo')")
                said = any(keyword.arg == "encoding" for keyword in node.keywords)
                assert ours or said, f"{path.name}, line {node.lineno}"


def test_files_stay_under_400_lines():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in FILES + TESTS}
    assert not {path: length for path, length in lengths.items() if length >= 400}


def test_nothing_imports_lm_evaluation_harness_unless_asked():
    for path in FILES:
        adapted = room(path) == "lm_eval_adapter"
        for name in imported(path):
            assert adapted or "lm_eval" not in name, f"{path.relative_to(ROOT)} imports {name}"


def test_no_two_test_files_define_the_same_function():
    """Of six lines and more; what two files need stands in conftest.py or a module of its own."""
    places = {}
    for path in TESTS:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if node.end_lineno - first >= 5:
                    places.setdefault(ast.unparse(node), set()).add(f"{path.name}: {node.name}")
    twice = [names for names in places.values() if len({n.split(":")[0] for n in names}) > 1]
    assert not twice, twice


def undocumented(path: pathlib.Path) -> list[str]:
    """Return the public names of a file without a docstring, "module" for the file itself."""
    tree = parsed(path)
    names = [] if ast.get_docstring(tree) else ["module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names += [] if ast.get_docstring(node) else [node.name]
            for member in getattr(node, "body", ()):
                public = isinstance(member, ast.FunctionDef) and not member.name.startswith("_")
                if isinstance(node, ast.ClassDef) and public and member.name != "setup":
                    names += [] if ast.get_docstring(member) else [f"{node.name}.{member.name}"]
    return names


def test_everything_public_has_a_docstring():
    bare = {str(path.relative_to(ROOT)): undocumented(path) for path in FILES}
    assert not {path: names for path, names in bare.items() if names}


def test_every_room_and_the_recipes_are_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in FILES}
    rooms = {".".join(folder.parts) for folder in folders}
    assert set(settings["packages"]) == rooms | settings["package-dir"].keys()
    assert settings["package-dir"] == {"flaxlm.configs": "configs"}


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


PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("experiments/**/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]*)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            assert anchor in {
                re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings
            }


def test_the_readme_draws_the_tree_as_it_is():
    text = (ROOT / "README.md").read_text()
    drawing = text[text.index("## The tree") :].split("```")[1]
    drawn = set(re.findall(r"^  ([\w/.]+)", drawing.split("flaxlm/\n")[1], re.M))
    there = {p.name + "/" * p.is_dir() for p in PACKAGE.iterdir() if not p.name.startswith("__")}
    assert drawn - {"__main__.py"} == there - {"lm_eval_adapter.py"}


def test_the_readme_links_every_page():
    text = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in text


def test_a_folder_sees_one_function_of_a_name():
    """Whether a folder's files define or import it; a verb's `Options` and `run` are its row's."""
    defined = {}
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        body = ast.parse(path.read_text()).body
        defined |= {(module, n.name): path for n in body if hasattr(n, "name")}
    seen: dict[tuple, set] = {}
    for (module, name), path in defined.items():
        if not name.startswith("_") and name not in ("main", "run", "Options"):
            seen.setdefault((path.parent, name), set()).add(module)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                if (node.module, alias.name) in defined:
                    name = alias.asname or alias.name
                    seen.setdefault((path.parent, name), set()).add(node.module)
    assert {key: modules for key, modules in seen.items() if len(modules) > 1} == {}
