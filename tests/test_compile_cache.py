"""Compiled programs are kept between commands, and torn ones are compiled again."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

from flux_jax.system import compile_cache

OPTIONS = (compile_cache.FOLDER, *compile_cache.VALUES)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder of a user whose environment chooses no other."""
    before = {name.lower(): getattr(jax.config, name.lower()) for name in OPTIONS}
    for name in OPTIONS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compile_cache, "VALUES", compile_cache.VALUES | {OPTIONS[2]: "0"})
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def hits_of_a_command() -> int:
    """Compile a function as a new process does; return how many programs were in the cache."""
    for name in OPTIONS:
        os.environ.pop(name, None)
    compile_cache.use()
    compilation_cache.reset_cache()
    events: list[str] = []

    def listen(event: str, **_: str | int) -> None:
        events.append(event)

    monitoring.register_event_listener(listen)
    try:
        # A new function is compiled again.
        assert jax.jit(lambda x: x * 2 + 1)(jnp.float32(3)) == 7
    finally:
        monitoring.unregister_event_listener(listen)
    return events.count("/jax/compilation_cache/cache_hits")


def programs(cache: Path) -> list[Path]:
    return sorted(cache.glob("erase-anything/*/*-cache"))


def test_the_next_command_does_not_compile(cache: Path):
    assert hits_of_a_command() == 0
    assert programs(cache)
    assert hits_of_a_command() == 1


@pytest.mark.parametrize("left", [0, 100])
def test_a_torn_program_is_compiled_and_kept_again(cache: Path, left: int):
    hits_of_a_command()
    whole = {file: file.read_bytes() for file in programs(cache)}
    for file, content in whole.items():
        file.write_bytes(content[:left])
    # JAX would warn, which is an error here.
    assert hits_of_a_command() == 0
    assert programs(cache) == list(whole)
    assert hits_of_a_command() == 1


def test_the_users_own_choice_stays(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(compile_cache.FOLDER, str(tmp_path / "own"))
    compile_cache.use()
    assert os.environ[compile_cache.FOLDER] == str(tmp_path / "own")
    assert not (cache / "erase-anything").exists()


def test_without_a_folder_to_write_nothing_is_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert hits_of_a_command() == 0
    assert compile_cache.FOLDER not in os.environ


def test_processors_have_folders_of_their_own(cache: Path, monkeypatch: pytest.MonkeyPatch):
    compile_cache.use()
    monkeypatch.delenv(compile_cache.FOLDER)
    monkeypatch.setattr("platform.machine", lambda: "another")
    compile_cache.use()
    assert len(list((cache / "erase-anything").iterdir())) == 2
