"""What the documentation says exists, and what is printed from the code is up to date."""

import argparse
import ast
import importlib
import importlib.util
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import kconn
from kconn import cli, schema
from kconn.errors import CODES
from kconn.study.file import Study
from tests import doc_tables

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())

#: Sites that a page may link to. A package index is none of them.
HOSTS = {"127.0.0.1:4200", "doi.org", "keepachangelog.com", "semver.org", "zarr-specs.readthedocs.io"}
#: What a study file needs, for examples that show one of its tables.
FRAME = {
    "study": {"name": "example"},
    "inputs": {"layout": "fmriprep", "root": "derivatives"},
    "nodes": {"atlas": {"atlas": "atlas.nii.gz"}},
}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def code(page):
    """Return all that stands as code: blocks and spans."""
    fenced = re.findall(r"^```.*?^```", page, re.DOTALL | re.MULTILINE)
    return [*fenced, *re.findall(r"`[^`\n]+`", re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE))]


def anchors(path):
    """Return the anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@every_page
def test_tables__are_those_of_the_code(path):
    page = path.read_text(encoding="utf-8")
    assert doc_tables.fill(page) == page, "run python -m tests.doc_tables"


def test_tables__show_every_dimension_variable_code_and_key():
    data_model, errors, study_file = (
        (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("data_model", "errors", "study_file")
    )
    assert [name for name in [*schema.DIMS, *schema.VARIABLES] if f"| `{name}` |" not in data_model] == []
    assert [name for name in CODES if f"| `{name}` |" not in errors] == []
    tables = {table for table in Study.model_fields if table not in {"folder", "schema_version"}}
    assert [table for table in tables if f"<!-- table: {table} -->" not in study_file] == []


@every_page
def test_links__lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


@every_page
def test_hosts__are_known(path):
    found = re.findall(r"https?://([^/\s)>`]+)", path.read_text(encoding="utf-8"))
    assert {host.removeprefix("www.") for host in found} <= HOSTS


@every_page
def test_paths__are_relative(path):
    page = path.read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.~/-])/(?:home|root|tmp|usr|var|opt|mnt|work|Users|data)/\S*", page) == []
    assert re.findall(r"[A-Z]:\\\S*", page) == []


@every_page
def test_commands__exist(path):
    (commands,) = (
        set(action.choices)
        for action in cli._parser()._actions
        if isinstance(action, argparse._SubParsersAction) and action.choices
    )
    for text in code(path.read_text(encoding="utf-8")):
        for line in re.findall(r"\bkconn +([a-z]+(?: \| [a-z]+)*)", text):
            assert set(line.split(" | ")) <= commands, line
        for target in re.findall(r"\bmake ([a-z-]+)", text):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
        for module in re.findall(r"python -m ((?:flows|benchmarks|tests|kconn)[.\w]*)(?![.\w<])", text):
            assert importlib.util.find_spec(module), module


@every_page
def test_names__exist(path):
    for text in code(path.read_text(encoding="utf-8")):
        for name in re.findall(r"(?<![\w./])kconn((?:\.[A-Za-z_]\w*)+)", text):
            assert resolve(name[1:].split(".")) is not None, name


def resolve(parts):
    """Return what ``kconn.a.b`` names: a public name, a module, or something in one."""
    if parts[-1] in {"zarr", "toml", "md"}:
        return parts
    found = kconn
    for i, part in enumerate(parts):
        inner = getattr(found, part, None)
        found = importlib.import_module(".".join(["kconn", *parts[: i + 1]])) if inner is None else inner
    return found


@every_page
def test_error_codes__exist(path):
    for found in re.findall(r"`(E-[A-Z-]+)`", path.read_text(encoding="utf-8")):
        assert found in CODES


@every_page
def test_python_examples__call_with_known_arguments(path):
    for block in blocks(path.read_text(encoding="utf-8"), "python"):
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            module, _, name = ast.unparse(call.func).rpartition(".")
            if module == "kconn":
                known = inspect.signature(getattr(kconn, name)).parameters
                assert {keyword.arg for keyword in call.keywords} <= set(known), ast.unparse(call)


@every_page
def test_study_file_examples__are_valid(path):
    for block in blocks(path.read_text(encoding="utf-8"), "toml"):
        Study.model_validate({**FRAME, **tomllib.loads(block)})


def test_index__links_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([^)#\s]+)\)", index))
