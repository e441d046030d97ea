"""The tables in docs/ that are printed from the code: ``python -m tests.doc_tables`` writes them anew."""

import inspect
import re
import types
import typing
from pathlib import Path

import annotated_types
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from kconn import errors, schema
from kconn.study import connection_tables, input_tables, table, test_tables
from kconn.study import file as study

DOCS = Path(__file__).parents[1] / "docs"
_KINDS = {"f": "float", "i": "integer", "u": "unsigned", "b": "true/false"}
_WORDS = {str: "text", float: "number", int: "whole number", bool: "true or false"}
_MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(name):
    """Return one table as Markdown."""
    if name in {"dims", "variables", "errors"}:
        return {"dims": _dims, "variables": _variables, "errors": _errors}[name]()
    return _keys(study.table_model(() if name == "top" else (name,)))


def fill(page):
    """Return a page with every marked table printed anew."""
    return _MARKED.sub(lambda match: f"{match[1]}{render(match[2])}\n{match[3]}", page)


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _dims():
    return _table(["dimension", "meaning"], [[f"`{name}`", doc] for name, doc in schema.DIMS.items()])


def _variables():
    return _table(
        ["variable", "last dimensions", "type", "unit", "meaning"],
        [
            [
                f"`{name}`",
                " or ".join(f"`({', '.join(dims)})`" for dims in variable.dims),
                " or ".join(_KINDS[kind] for kind in variable.kind),
                variable.unit,
                variable.doc,
            ]
            for name, variable in schema.VARIABLES.items()
        ],
    )


def _errors():
    """Group the codes as the comments in their table do."""
    parts, rows = [], []
    for line in inspect.getsource(errors).partition("CODES")[2].partition("\n}\n")[0].splitlines():
        if heading := re.fullmatch(r"    # (.+)", line):
            parts += [_table(["code", "meaning"], rows)] if rows else []
            parts.append(f"## {heading[1][0].upper()}{heading[1][1:]}")
            rows = []
        elif code := re.match(r'    "(E-[A-Z-]+)":', line):
            rows.append([f"`{code[1]}`", errors.CODES[code[1]]])
    return "\n\n".join([*parts, _table(["code", "meaning"], rows)])


def _keys(model):
    only = {key: f"layout {' or '.join(of)}" for key, of in input_tables.LAYOUTS_OF.items()}
    only |= {key: " or ".join(of) for key, of in connection_tables.SOURCE_OF.items()}
    rows = []
    shared = test_tables.PermutationTable.model_fields if model is test_tables.ContrastTable else ()
    for key, field in model.model_fields.items():
        if _is_table(field.annotation) or key == "folder" or key in shared:
            continue
        of = (
            f" ({only[key]} only)"
            if model in {input_tables.InputsTable, connection_tables.NodesTable} and key in only
            else ""
        )
        rows.append([f"`{key}`", _type(field), _default(field), f"{field.description or _about(key)}{of}"])
    return _table(["key", "type", "default", "meaning"], rows)


def _about(key):
    return {"schema_version": "of the study file"}[key]


def _is_table(annotation):
    args = [annotation, *typing.get_args(annotation)]
    return any(inspect.isclass(arg) and issubclass(arg, BaseModel) for arg in args)


def _default(field):
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return "not set" if value in (None, PydanticUndefined) else f"`{_toml(value)}`"


def _toml(value):
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _type(field):
    limits = {annotated_types.Ge: "at least", annotated_types.Gt: "above", annotated_types.Le: "at most"}
    found = [f"{limits[type(rule)]} {next(iter(_values_of(rule)))}" for rule in field.metadata if type(rule) in limits]
    return ", ".join([_words(field.annotation), *found])


def _values_of(rule):
    return [getattr(rule, name) for name in rule.__slots__]


def _words(annotation):
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {typing.Union, types.UnionType}:
        cell = set(typing.get_args(table.Cell))
        shown = ["value"] if cell <= set(args) else []
        shown += [_words(arg) for arg in args if arg is not type(None) and not (shown and arg in cell)]
        return " or ".join(shown)
    words = {
        None: lambda: _WORDS[annotation],
        typing.Annotated: lambda: _words(args[0]),
        typing.Literal: lambda: ", ".join(f"`{_toml(value)}`" for value in args),
        list: lambda: f"list of {_words(args[0])}",
        dict: lambda: f"table of {_words(args[1])}",
        tuple: lambda: f"[{', '.join(map(_words, args))}]",
    }
    return words[origin]()


def main():
    for path in sorted(DOCS.rglob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (filled := fill(page)) != page:
            path.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
