"""House rules of names, docstrings and messages; docs/architecture.md states them."""

import ast
import re
from functools import cache

import pytest
from conftest import ROOT

FILES = [str(file.relative_to(ROOT)) for file in sorted((ROOT / "src").rglob("*.py"))]
PARTICIPLES = set(
    [
        "found",
        "said",
        "told",
        "asked",
        "known",
        "chosen",
        "kept",
        "wanted",
        "given",
        "made",
        "held",
        "shown",
        "drawn",
        "passed",
        "named",
        "taken",
        "heard",
        "seen",
        "left",
        "moved",
        "gone",
        "meant",
        "typed",
        "walked",
        "listed",
        "gathered",
        "parted",
        "watched",
        "begun",
        "settled",
    ]
)
PERSON_VERB = re.compile(
    r"\b(hears?|heard|says?|said|tells?|told|asks?|asked|speaks?|knows?|knew|believes?|wants?|"
    r"wanted|remembers?)\b"
)
WEAK_START = re.compile(
    r"(What|Of|Where|Whether|Those|That|It|Its|By|In|As|With|Behind|Beside|Anew|Said|All|Which|"
    r"Such)\b"
)


@cache
def parse(file):
    return ast.parse((ROOT / file).read_text())


def bound_names(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            text := ast.get_docstring(node)
        ):
            yield text


@pytest.mark.parametrize("file", FILES)
def test_names_are_nouns_and_verbs_of_the_field(file):
    names = {name.strip("_") for name in bound_names(parse(file))}
    assert names & PARTICIPLES == set()
    assert [name for name in names if PERSON_VERB.search(name.replace("_", " "))] == []


@pytest.mark.parametrize("file", FILES)
def test_docstrings_begin_with_a_verb_or_a_noun(file):
    texts = [*docstrings(parse(file))]
    assert [text.splitlines()[0] for text in texts if WEAK_START.match(text)] == []
    assert [text for text in texts if PERSON_VERB.search(text)] == []
