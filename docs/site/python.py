"""Pages of the Python API: a page for each package, its modules through mkdocstrings."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("flux_jax", "convert", "erase")
FOLDER = "reference/python"
HEAD = """# Python

Public functions and classes, with their shapes. `Float[Array, "B S C"]` is a float array with the
axes B, S and C ([jaxtyping](https://docs.kidger.site/jaxtyping/)); each module's first lines
say what the letters are. Tests check these shapes at every call.

"""


def modules() -> Iterator[str]:
    """Names of all public modules."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if not name.endswith("__main__"):
                yield name.removesuffix(".__init__")


def package_of(module: str) -> str:
    """The package on whose page a module is: itself, if it is one."""
    folder = ROOT.joinpath(*module.split("."))
    return module if folder.is_dir() else module.rpartition(".")[0]


def page_of(module: str) -> str:
    """The page of a module, in the site's sources."""
    return f"{FOLDER}/{package_of(module)}.md"


def pages() -> dict[str, str]:
    """All pages by their place: one for each package, and an index of them."""
    by_package: dict[str, list[str]] = {}
    for module in modules():
        by_package.setdefault(package_of(module), []).append(module)
    index = "\n".join(
        f"- [{package}]({package}.md): {', '.join(_short(each, package) for each in listed)}"
        for package, listed in by_package.items()
    )
    found = {f"{FOLDER}/index.md": f"{HEAD}{index}\n"}
    for package, listed in by_package.items():
        body = "\n".join(f"::: {module}\n" for module in sorted(listed, key=_depth))
        found[f"{FOLDER}/{package}.md"] = f"# {package}\n\n{body}"
    return found


def _depth(module: str) -> tuple[int, str]:
    return module.count("."), module


def _short(module: str, package: str) -> str:
    return f"`{module.removeprefix(f'{package}.')}`"
