"""Contributors' files: one version everywhere, links that lead somewhere, hooks of pinned tools."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.tiny import ROOT

PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", ".github/pull_request_template.md")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_version_is_the_same_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.*?)\]", changes, re.MULTILINE)[0] == PROJECT["version"]
    assert read("CITATION.cff")["version"] == PROJECT["version"]
    minor = PROJECT["version"].rpartition(".")[0]
    assert f"| {minor}.x | yes |" in (ROOT / "SECURITY.md").read_text()


def test_the_citation_names_the_paper_and_the_licence():
    citation = read("CITATION.cff")
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["title"].startswith("EraseAnything: ")
    assert paper["year"] == 2025
    assert len({author["family-names"] for author in paper["authors"]}) >= 9


@pytest.mark.parametrize("page", PAGES)
def test_files_and_commands_that_a_page_names_exist(page: str):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for path in re.findall(r"`((?:tests|erase|configs|docs|benchmarks|models)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z][\w-]*)[`\s]", text)) - {"test"} <= {*targets}, page


def test_hooks_use_the_environment_whose_versions_the_project_pins():
    (repo,) = read(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repo["hooks"]}
    assert set(hooks) == {"ruff", "ruff-format", "pyright", "codespell", "imports"}
    pinned = [asked.partition("==")[0] for asked in PROJECT["optional-dependencies"]["test"]]
    for hook in hooks.values():
        command, *arguments = hook["entry"].split()
        tool = Path(command)
        assert tool.parent == Path(".venv/bin")
        assert tool.name == "python" or tool.name in pinned
        files = [argument for argument in arguments if argument.startswith("tests/")]
        assert all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize("file", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=str)
def test_issue_forms_are_complete(file: Path):
    form = yaml.safe_load(file.read_text())
    assert {"name", "description", "body"} <= set(form)
    names = [field["id"] for field in form["body"]]
    assert len(names) == len(set(names))
    for field in form["body"]:
        assert field["type"] in ("textarea", "dropdown", "checkboxes", "input")
        assert field["attributes"]["label"]
        assert ("options" in field["attributes"]) == (field["type"] in ("dropdown", "checkboxes"))
