"""Words: texts of parameters are noun phrases that stand alone, and no line of prose is wider than code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("sb3_tgrpo", "envs", "rewards")
FIELD = re.compile(r":(param \w+|return|raises \w+):\s*(.*?)(?=\n\s*:(?:param|return|raises)|\n\n|\Z)", re.DOTALL)
WIDTH = 127


def fields() -> Iterator[tuple[str, str]]:
    """Place and text of each ``:param:``, ``:return:`` and ``:raises:``."""
    for path in sorted({file.resolve() for package in PACKAGES for file in ROOT.joinpath(package).rglob("*.py")}):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                for match in FIELD.finditer(ast.get_docstring(node) or ""):
                    yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)} :{match[1]}:", " ".join(match[2].split())


def test_texts_of_parameters_stand_alone() -> None:
    wrong = [
        f"{place} {text[:80]}"
        for place, text in fields()
        if not text or not (text[0].isupper() or text[0] in "`0123456789(:\"'") or not text.endswith((".", ")"))
    ]
    assert not wrong, f"{len(wrong)} texts need a capital and a full stop:\n" + "\n".join(wrong)


def test_prose_is_no_wider_than_code() -> None:
    """Rows of tables can't be broken; README has short ones."""
    wrong = []
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > WIDTH and (path.name == "README.md" or not line.startswith(("|", "::: "))):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {len(line)} columns")
    assert not wrong, "\n".join(wrong)
