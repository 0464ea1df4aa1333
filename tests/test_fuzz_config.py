"""Any value in any field, in files and on the command line: a configuration, or an error."""

import datetime
import decimal
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from absl import flags
from helpers.bounds import tells_or_works
from hypothesis import example, given
from hypothesis import strategies as st
from ml_collections import config_flags

from erase.cli import flags as command
from erase.config.fields import paths
from erase.config.schema import Config
from erase.runs import EACH, RunConfig, configure, load_runs
from erase.runs.presets import PRESETS
from erase.runtime.run_folder import WRITTEN
from erase.training import resume_check
from flux_jax.errors import InputError


def hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


BASE = {
    "concept": "cat",
    "prompts": ("a photo of a cat",),
    "synonyms": ("kitty",),
    "irrelevant": ("dog", "sun", "tree"),
}
FIELDS = sorted(paths(RunConfig))
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**31, 2**32, -(2**63), 2**64, 10**400, -(10**400)]),
    st.floats(),
    st.complex_numbers(),
    TEXTS,
    st.text("ab \n", min_size=5000, max_size=5001),
    st.binary(max_size=5),
    st.sampled_from(
        [
            object(),
            len,
            int,
            pathlib.Path("a"),
            datetime.date(2020, 1, 1),
            decimal.Decimal("NaN"),
            np.float32(2),
            np.int64(2),
            np.zeros(3),
            np.array(["a"]),
            range(3),
            {1, 2},
            "noun",
            "a {}",
            "a cat",
            "float32",
        ]
    ),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.one_of(st.sampled_from(FIELDS), TEXTS, st.integers(), st.none())
    lists = st.lists(inner, max_size=4)
    return st.one_of(lists, lists.map(tuple), st.dictionaries(names, inner, max_size=3))


VALUES = st.recursive(SCALARS, containers, max_leaves=5)


def nested(levels: int, inner: Any = 1, *, mapping: bool = True) -> Any:
    for _ in range(levels):
        inner = {"lower": inner} if mapping else [inner]
    return inner


# Names of `configure`'s own parameters, or of a dictionary's methods.
NAMES = st.one_of(
    st.sampled_from([*FIELDS, EACH, "a.b", "", "keys", "to_dict", "lock", "__class__", "_fields"]),
    TEXTS,
).filter(lambda name: name != "preset")


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Valid values, some of which are replaced, at the right or at wrong places."""
    values: dict[str, Any] = dict(BASE)
    for path in draw(st.lists(NAMES, min_size=1, max_size=3)):
        value = draw(VALUES)
        *parents, name = path.split(".") if draw(st.booleans()) else [path]
        for parent in reversed(parents):
            name, value = parent, {name: value}
        values[name] = value
    return values


@st.composite
def usable(draw: st.DrawFn) -> dict[str, Any]:
    """A number for some of the fields, mostly in its range."""
    values: dict[str, Any] = dict(BASE)
    for path in draw(st.lists(st.sampled_from(FIELDS), max_size=4)):
        part, _, name = path.rpartition(".")
        value = draw(st.one_of(st.integers(0, 2**34), st.floats(0, 1), st.booleans(), st.none()))
        if part:
            values.setdefault(part, {})
            if isinstance(values[part], dict):
                values[part][name] = value
        elif path not in ("lower", "upper"):
            values[name] = value
    return values


def load(values: Any) -> None:
    with tells_or_works():
        for config in load_runs(values).values():
            assert isinstance(config, Config)
            hash(config)
            # The first operation of every later step.
            jax.random.key(config.seed)
            np.random.default_rng(config.evaluation.seed)


@pytest.mark.slow
@given(values=changes(), preset=st.sampled_from(["", *PRESETS]))
@example(values=BASE | {"prompts": None}, preset="")
@example(values=BASE | {"guidance": 10**400}, preset="")
@example(values=BASE | {"lower.attn": 2.0}, preset="")
@example(values=BASE | {"method": []}, preset="native")
@example(values=BASE | {"by_method": {"esd": [], 3: {}}}, preset="")
def test_files_give_configurations_or_errors(values: dict[str, Any], preset: str):
    with tells_or_works():
        load(configure(preset, **values))


@given(values=usable())
@example(values=BASE | {"seed": 2**70})
@example(values=BASE | {"evaluation": {"seed": 2**63}})
@example(values=BASE | {"iterations": 2**31})
def test_what_passes_can_be_used(values: dict[str, Any]):
    with tells_or_works():
        load(configure(**values))


@pytest.mark.slow
@given(st.one_of(VALUES, st.dictionaries(st.one_of(NAMES, SCALARS.filter(hashable)), VALUES)))
def test_what_get_config_returns_is_checked(given: Any):
    load(given)


# Hypothesis could not print these, nor those below.
@pytest.mark.parametrize(
    "values", [{"lower": nested(3000)}, {"prompts": nested(3000, mapping=False)}]
)
def test_values_within_thousands_of_others_are_told(values: dict[str, Any]):
    # Python 3.13 prints what earlier ones cannot.
    with pytest.raises(InputError, match=r"maximum recursion|must be a tuple") as error:
        load_runs(configure(**{**BASE, **values}))
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("field", ["seed", "guidance", "concept", "each", "lower"])
def test_numbers_that_python_does_not_print_are_told(field: str):
    with pytest.raises(InputError, match=f"{field} = a int too large to show|{field} must hold"):
        load_runs(configure(**{**BASE, field: 10**5000}))
    with pytest.raises(InputError, match="a int too large to show is not a field"):
        load_runs({**BASE, 10**5000: 1})


RUN_NAMES = st.one_of(
    st.sampled_from(
        [
            "a",
            "b-1",
            "c_2",
            "ü",
            "../x",
            "a/b",
            "con",
            "checkpoints",
            "pictures",
            ".",
            "..",
            "",
            "a\0b",
            "a b",
            "x" * 300,
            "é" * 200,
            "a.b",
            "-",
            "a\n",
        ]
    ),
    TEXTS,
    st.integers(),
    st.none(),
    st.tuples(st.text()),
)


# Per-run settings, most of them valid.
OWN = st.one_of(
    st.just({}), st.fixed_dictionaries({"seed": st.integers(0, 9)}), changes(), usable(), VALUES
)


@pytest.mark.slow
@given(
    each=st.dictionaries(RUN_NAMES, OWN, max_size=3),
    through_configure=st.booleans(),
)
@example(each={0: {}, "a": {}}, through_configure=True)
@example(each={0: {}, "a": {}}, through_configure=False)
@example(each={"a.b": {}}, through_configure=True)
@example(each={"checkpoints": {}}, through_configure=False)
@example(each={"é" * 200: {}}, through_configure=True)
def test_runs_have_usable_names(
    each: dict[Any, Any], through_configure: bool, tmp_path: pathlib.Path
):
    def check() -> None:
        values = {**BASE, EACH: each}
        runs = load_runs(configure(**values) if through_configure else values)
        resume_check.check(tmp_path, {name: {} for name in runs}, overwrite=False)
        for name in runs:
            assert (pathlib.Path("/runs") / name).resolve().parent == pathlib.Path("/runs")
            assert len(name.encode()) <= 255
            assert not (name and name in WRITTEN)

    with tells_or_works():
        check()


OVERRIDES = st.one_of(
    TEXTS,
    VALUES.map(repr),
    st.sampled_from(["", "(", "('a',", "[" * 300, "(" * 5000, "1e999", "0x10", "9" * 5000, "None"]),
    st.text("()[]{}'\",.0123456789aeTrue\\ -+*", max_size=12),
)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:invalid escape:SyntaxWarning")
@given(
    overrides=st.lists(
        st.tuples(st.one_of(st.sampled_from(FIELDS), TEXTS), OVERRIDES, st.booleans()),
        min_size=1,
        max_size=2,
    )
)
@example(overrides=[("", "", False)])
@example(overrides=[("prompts", "(" * 5000, True)])
def test_overrides_give_configurations_or_errors(
    overrides: list[tuple[str, str, bool]],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
):
    file = tmp_path / "config.py"
    file.write_text(
        f"from erase.runs import configure\ndef get_config():\n    return configure(**{BASE!r})\n"
    )
    arguments = ["program", f"--config={file}"]
    for path, value, together in overrides:
        flag = f"--config.{path}"
        arguments += [f"{flag}={value}"] if together else [flag, value]
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)

    def parse() -> None:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
        code = None
        try:
            command.parse_flags(arguments)
        except SystemExit as error:
            code = error.code
        assert code in (None, 2)
        if code is None:
            load(values.config)

    with tells_or_works():
        parse()
