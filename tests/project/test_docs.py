"""Pages: programs run, imports and names resolve, command lines parse. And the files that a public project has."""

import argparse
import ast
import importlib
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from sb3_tgrpo.cli import SUBCOMMANDS
from sb3_tgrpo.cli.flags import rename_flags

ROOT = Path(__file__).parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")})
SCRIPTS = sorted({*ROOT.glob("examples/**/*.py"), *ROOT.glob("scripts/*.py")})
GUIDES = [page for page in PAGES if "results" not in page.parts and page.name != "CHANGELOG.md"]  # these record the past
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FOREIGN_FLAGS = {"--no-deps", "--strict", "--help"}

# Above a complete program that takes seconds: `<!-- tested -->`, or `<!-- tested with 1_000 for 140_000 -->`.
TESTED = re.compile(r"^<!-- tested(?: with (\S+) for (\S+))? -->\n```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS = [(page, match) for page in PAGES for match in TESTED.finditer(page.read_text(encoding="utf-8"))]


def blocks(page: Path, *languages: str) -> list[str]:
    return [match[2] for match in FENCE.finditer(page.read_text(encoding="utf-8")) if match[1] in languages]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def resolve(dotted: str) -> Any:
    """The object of that name: modules as far as they go, then attributes."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("match", [match for _, match in PROGRAMS], ids=[str(page.name) for page, _ in PROGRAMS])
def test_program_runs(match: re.Match[str], tmp_path: Path) -> None:
    new, old, program = match.groups()
    if old:
        assert program.count(old) == 1
        program = program.replace(old, new)
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_imports_resolve(page: Path) -> None:
    for program in blocks(page, "python"):
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sb3_tgrpo"):
                for alias in node.names:
                    resolve(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_resolve(page: Path) -> None:
    """Of the API reference, and dotted names of this package in the text."""
    text = page.read_text(encoding="utf-8")
    for dotted in re.findall(r"^::: (\S+)", text, re.MULTILINE):
        resolve(dotted)
    if page in GUIDES:
        for dotted in re.findall(r"`(sb3_tgrpo(?:\.\w+)+)", prose(page)):
            resolve(dotted)


class Parser(argparse.ArgumentParser):
    """Raises what it would print."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


@cache
def parser() -> Parser:
    """The command line's, without the commands."""
    made = Parser(prog="sb3-tgrpo")
    subparsers = made.add_subparsers(required=True)
    for command in SUBCOMMANDS:
        importlib.import_module(f"sb3_tgrpo.cli.{command}").add_parser(subparsers)
    return made


def flags_of(some: argparse.ArgumentParser) -> set[str]:
    found = set(some._option_string_actions)
    for action in some._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {flag for sub in action.choices.values() for flag in flags_of(sub)}
    return found


def check_command(arguments: list[str], complete: bool) -> None:
    """
    :param arguments: Arguments of ``sb3-tgrpo``.
    :param complete: Whether what is required must be there.
    """
    renamed = getattr(importlib.import_module(f"sb3_tgrpo.cli.{arguments[0]}"), "RENAMED", {})
    assert rename_flags(arguments, renamed) == arguments, f"renamed flags: {arguments}"
    try:
        parser().parse_args(arguments)
    except ValueError as error:
        if complete or not re.search("required|expected", str(error)):
            raise AssertionError(f"sb3-tgrpo {shlex.join(arguments)}: {error}") from error
    except SystemExit as stop:  # --help
        assert not stop.code


def commands(page: Path) -> Iterator[list[str]]:
    """Commands of the page's shell blocks, variables replaced, a list of words each."""
    variables: dict[str, str] = {}
    for block in blocks(page, "bash", ""):
        for line in block.replace("\\\n", " ").splitlines():
            for variable, value in variables.items():
                line = line.replace(f"${variable}", value)
            try:
                words = shlex.split(line.replace(";", " ; ") if "=" in line.partition(" ")[0] else line, comments=True)
            except ValueError:  # output, not a command
                continue
            command: list[str] = []
            for word in [*words, ";"]:
                if word in (";", "&&", "|"):
                    yield command
                    command = []
                elif not command and re.match(r"[A-Z_]+=", word):
                    variable, _, variables[variable] = word.partition("=")
                else:
                    command.append(word)


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_command_lines_parse(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", ROOT.joinpath("Makefile").read_text(), re.MULTILINE))
    for command in commands(page):
        if command[:1] == ["sb3-tgrpo"] and len(command) > 1:
            check_command(command[1:], complete=True)
        elif command[:1] == ["make"]:
            assert not {word for word in command[1:] if "=" not in word} - targets, command
        elif command[:1] == ["python"] and len(command) > 1 and command[1].endswith(".py"):
            text = ROOT.joinpath(command[1]).read_text()
            assert all(word in text for word in command if word.startswith("--")), command


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_flags_in_the_text_exist(page: Path) -> None:
    known = flags_of(parser()) | FOREIGN_FLAGS
    known |= {flag for script in SCRIPTS for flag in re.findall(r'"(--[a-z-]+)"', script.read_text())}
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        words = code.removeprefix("sb3-tgrpo ").split()
        if words and words[0] in SUBCOMMANDS and len(words) > 1 and "..." not in code and " | " not in code:
            check_command(words, complete=False)
        elif words and not words[0].startswith(("pip", "git", "accelerate")):
            unknown = {word for word in words if re.fullmatch(r"--[a-z][a-z-]*", word)} - known
            assert not unknown, f"{name(page)}: {unknown} in `{code}`"


def test_notebook_compiles_and_its_imports_resolve() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "examples/tgrpo.ipynb", as_version=4)
    nbformat.validate(notebook)
    program = "\n\n".join(
        re.sub(r"^[!%].*$", "pass", cell.source, flags=re.MULTILINE) for cell in notebook.cells if cell.cell_type == "code"
    )
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sb3_tgrpo"):
            for alias in node.names:
                resolve(f"{node.module}.{alias.name}")


def test_workflows_forms_and_hooks_are_yaml_and_call_what_exists() -> None:
    files = {path: yaml.safe_load(path.read_text()) for path in ROOT.glob(".github/**/*.yml")}
    files[ROOT / ".pre-commit-config.yaml"] = yaml.safe_load(ROOT.joinpath(".pre-commit-config.yaml").read_text())
    assert len(files) >= 10 and all(files.values())
    workflows = [content for path, content in files.items() if path.parent.name == "workflows"]
    runs = [step["run"] for flow in workflows for job in flow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = set(re.findall(r"^([a-z-]+):", ROOT.joinpath("Makefile").read_text(), re.MULTILINE))
    for run in runs:
        for words in re.findall(r"^make ([a-z ]+)$", run):
            assert set(words.split()) <= targets, run
        for path in re.findall(r"\b(?:tests|scripts)/[\w/.]+", run):
            assert ROOT.joinpath(path).exists(), run
    assert sum(run.startswith("make ") for run in runs) >= 3


def test_site_lists_every_page() -> None:
    text = ROOT.joinpath("mkdocs.yml").read_text()
    listed = set(re.findall(r"^ +- (?:[^:\n]+: )?([\w/]+\.md)$", text, re.MULTILINE))
    own = {"contributing.md", "changelog.md", "vulnerabilities.md"}
    pages = {str(path.relative_to(ROOT / "docs")) for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/re*/*.md")]}
    assert listed - own == pages


def test_oldest_versions_are_those_of_the_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["requirements.py", "--minimum"])
    runpy.run_path(str(ROOT / "scripts/requirements.py"), run_name="__main__")
    dependencies = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())["project"]["dependencies"]
    printed = capsys.readouterr().out.split()
    assert printed and all(any(line.startswith(one.replace("==", ">=")) for line in dependencies) for one in printed)
