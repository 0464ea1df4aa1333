"""The documentation: pages of commands and fields, links, commands and messages that it names."""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.tiny import ROOT

from docs.site import check_links, commands, configuration, links, python
from erase.cli import commands as cli
from erase.config.fields import paths
from erase.runs import RunConfig

DOCS = ROOT / "docs"
PAGES = sorted(file for file in DOCS.rglob("*.md"))
GENERATED = {"reference/commands.md", "reference/configuration.md", "reference/python/index.md"}
GENERATED |= {"results.md", "quickstart.md"}


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Names of each command's flags."""
    known, found = {}, commands.read_flags(cli.COMMANDS.values())
    for name, module in cli.COMMANDS.items():
        read = found[module]
        words = [word.rstrip(",") for flag in read for word in flag["name"].split()]
        known[name] = {word.replace("[no]", "") for word in words if word.startswith("-")}
        # A part of absl's flags has a negation.
        known[name] |= {f"--no{flag['name'][6:]}" for flag in read if "[no]" in flag["name"]}
    return known


@pytest.mark.slow
def test_every_command_has_a_section_with_its_flags(flags: dict[str, set[str]]):
    page = commands.page()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == list(cli.COMMANDS)
    assert "| `--share` | a number | `0.1` |" in page
    assert "sum or concat or normalized or svd or fusion" in page
    for names in flags.values():
        for name in names - {f"--no{each[2:]}" for each in names}:
            assert name.removeprefix("--") in page


def test_every_field_is_listed_with_type_default_and_range():
    page = configuration.page()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| (.*) \|$", page, re.MULTILINE))
    parts = {prefix.rstrip(".") for prefix, _ in configuration.parts(RunConfig)}
    assert set(paths(RunConfig)) - parts <= set(rows)
    assert rows["bank.shuffled"].startswith("number, at least 0, at most 1 | `1.0` | share of")
    assert rows["alternation"].startswith("`bilevel` or `joint` or `adaptive` | `'bilevel'` |")
    assert rows["adapter.alpha"].startswith("number or None, above 0 | `None` |")
    assert rows["concept"].startswith("text | required |")
    assert rows["lower.clip"].partition(" | ")[2].startswith("`None` | largest norm of a gradient")


def test_every_module_has_its_place_in_the_python_reference():
    shown = "\n".join(python.pages().values())
    named = re.findall(r"^::: ([\w.]+)$", shown, re.MULTILINE)
    assert sorted(named) == sorted(python.modules())
    assert python.page_of("erase.methods.esd") == "reference/python/erase.methods.md"
    assert python.page_of("erase.methods") == "reference/python/erase.methods.md"


def nav(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, list):
        for each in entry:
            yield from nav(each)
    elif isinstance(entry, dict):
        yield from nav(list(entry.values()))


def test_the_navigation_names_every_page_and_no_other():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    written = {file.relative_to(DOCS).as_posix() for file in PAGES}
    assert set(nav(site["nav"])) == written | GENERATED
    assert site["theme"]["font"] is False


def test_links_of_pages_lead_to_files():
    for file in PAGES:
        page = file.relative_to(DOCS).as_posix()
        for target in re.findall(r"\]\(([^)\s#]+)", links.FENCE.sub("", file.read_text())):
            path = (file.parent / target).resolve()
            made = path.relative_to(ROOT / "docs").as_posix() if path.is_relative_to(DOCS) else ""
            known = made.startswith(("pictures/", "reference/python/")) or made in GENERATED
            assert links.is_external(target) or known or path.exists(), f"{page}: {target}"


def test_a_link_to_a_file_becomes_a_link_to_its_page():
    text = "[a](../../erase/methods/esd.py) [b](../../configs/emoji_cat.py#x) [c](../adapters.md)"
    text += "\n```\n[d](../../erase/train.py)\n```\n[e](https://x.org/y.py) [f](../../RESULTS.md#z)"
    made = links.resolved(text, "tutorials/page.md")
    assert "[a](../reference/python/erase.methods.md#erase.methods.esd)" in made
    assert "[b](../source/configs/emoji_cat.py.md#x)" in made
    assert "[c](../adapters.md)" in made
    assert "[d](../../erase/train.py)" in made
    assert made.endswith("[e](https://x.org/y.py) [f](../results.md#z)")
    with pytest.raises(FileNotFoundError, match="no_such"):
        links.resolved("[a](../no_such.py)", "page.md")


def test_source_pages_follow_links_and_keep_text():
    made = links.source_pages([("page.md", "[a](../models/emoji-flux/README.md)")])
    assert {
        "source/models/emoji-flux/README.md.md",
        "source/models/emoji-flux/measure.json.md",
    } <= set(made)
    text = made["source/models/emoji-flux/measure.json.md"]
    assert (ROOT / "models/emoji-flux/measure.json").read_text().strip() in text


def test_broken_links_of_a_site_are_reported(tmp_path: Path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there">x</a><a href="#here">x</a><a href="c.html">x</a>'
        '<a href="b.html#gone">x</a><script src="https://x.org/y.js"></script>'
        '<a href="https://x.org">x</a>'
    )
    (tmp_path / "b.html").write_text('<p id="there">')
    assert list(check_links.problems(tmp_path)) == [
        "a.html: loads https://x.org/y.js from another host",
        "a.html: c.html leads to no file",
        "a.html: b.html#gone leads to no anchor",
    ]


def shell_commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of this project in a page's blocks of shell code."""
    for file in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", file.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["erase-anything"] or words[:3] == ["python", "-m", "erase"]:
                    yield file.name, words[1 if words[0] == "erase-anything" else 3 :]
                elif words[:3] == ["python", "-m", "erase.train"]:
                    yield file.name, ["train", *words[3:]]
                elif words[:2] == ["python", "-m"]:
                    assert links.ROOT.joinpath(*words[2].split(".")).with_suffix(".py").is_file()


def test_commands_of_pages_exist_with_their_flags_fields_and_files(flags: dict[str, set[str]]):
    found = list(shell_commands())
    assert len(found) > 25
    fields = set(paths(RunConfig))
    for page, words in found:
        name, rest = cli.named(words)
        for word in rest:
            flag = word.partition("=")[0]
            if field := re.fullmatch(r"--config\.(.+)", flag):
                # The method of a tutorial is none of the program's.
                assert field[1] in fields, f"{page}: {word}"
            elif flag.startswith("--"):
                assert flag in flags[name] | {"--config", "--help"}, f"{page}: {name} {word}"
            elif word.startswith("configs/"):
                assert (ROOT / word.partition(":")[0]).is_file(), f"{page}: {word}"


def texts(node: ast.AST) -> Iterator[str]:
    """Strings of a module, "…" in the place of what an f-string fills in."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value
        elif isinstance(each, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in each.values
            )


def test_the_program_has_every_message_that_troubleshooting_names():
    known = [
        " ".join(text.split())
        for package in python.PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for text in texts(ast.parse(file.read_text()))
        # Messages are sentences; this leaves names and the like out.
        if " " in text
    ]
    page = (DOCS / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) > 50
    gone = [
        message
        for message in messages
        if not any(all(part.strip() in text for part in message.split("…")) for text in known)
    ]
    assert not gone


def test_flags_of_argparse_are_read():
    from docs.site.flags import of_argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--rank", type=int, default=4, help="how many")
    assert list(of_argparse(parser)) == [
        {"name": "FILE", "values": "", "default": None, "help": ""},
        {"name": "--rank", "values": "", "default": "4", "help": "how many"},
    ]
