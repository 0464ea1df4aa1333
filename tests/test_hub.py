"""Models by their name on the hub, downloaded from a local test server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub import Hub

from erase.runs import configure, load_runs
from flux_jax.errors import InputError
from flux_jax.weights.hub import check_model, find_model
from flux_jax.weights.source import open_source
from flux_jax.weights.tables import COMPONENTS

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "hf_secret"


@pytest.fixture(scope="module")
def hub(tiny_folder: Path) -> Iterator[Hub]:
    served = Hub(tiny_folder, TOKEN)
    yield served
    served.server.shutdown()
    served.server.server_close()


def find(url: str, name: str, home: Path, **environment: str) -> str:
    """Result or message of `find_model`, in a process whose hub is at `url`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    program = (
        "import sys; from flux_jax.errors import exits_cleanly\n"
        "from flux_jax.weights.hub import find_model\n"
        "exits_cleanly(lambda: print(find_model(sys.argv[1])))()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, name],
        cwd=ROOT,
        env={**kept, "HF_ENDPOINT": url, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_name_is_fetched_once(hub: Hub, tiny_folder: Path, tmp_path: Path):
    path = Path(find(hub.url, "owner/tiny", tmp_path))
    for name in COMPONENTS:
        source, wanted = open_source(path, name), open_source(tiny_folder, name)
        assert (source.config, source.tensors.keys()) == (wanted.config, wanted.tensors.keys())
    assert (path / "tokenizer_2").is_dir()
    fetched = len(hub.fetched)
    assert fetched
    assert find(hub.url, "owner/tiny", tmp_path) == str(path)
    assert len(hub.fetched) == fetched


@pytest.mark.slow
def test_the_licence_gate_is_told_and_a_token_opens_it(hub: Hub, tmp_path: Path):
    said = find(hub.url, "owner/gated", tmp_path)
    assert said == (
        f"error: model = 'owner/gated': its licence must be accepted on {hub.url}/owner/gated "
        "first; then log in with `hf auth login`, or set HF_TOKEN"
    )
    assert Path(find(hub.url, "owner/gated", tmp_path, HF_TOKEN=TOKEN)).is_dir()


def test_what_cannot_be_found_is_told(hub: Hub, tmp_path: Path):
    said = find(hub.url, "owner/tinny", tmp_path)
    assert said.startswith("error: model = 'owner/tinny' is neither a local path nor a repository")
    said = find("http://127.0.0.1:9", "owner/tiny", tmp_path)
    assert (
        "'owner/tiny' is not a local path and could not be downloaded from http://127.0.0.1:9"
        in said
    )
    with pytest.raises(InputError, match=r"'no/such/folder' does not exist; check the path"):
        find_model("no/such/folder")


@pytest.mark.parametrize("given", ["models/emoji-flux", "./models/x"])
def test_a_folder_of_the_repository_is_not_looked_up_on_the_hub(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    said = rf"^model = '{given}' does not exist: the small model, models/emoji-flux, comes with"
    # Before words and settings, which are the model's.
    configuration = configure(concept="guitar", model={"path": given})
    for check in (check_model, find_model, lambda _: load_runs(configuration)):
        with pytest.raises(InputError, match=said):
            check(given)
    (tmp_path / given).mkdir(parents=True)
    check_model(given)


def test_paths_are_taken_as_they_are(tmp_path: Path):
    assert find_model(str(tmp_path)) == tmp_path


def test_a_folder_of_the_cache_is_the_version_in_it(tmp_path: Path):
    cache = tmp_path / "models--owner--tiny"
    for version in ("abc", "def"):
        (cache / "snapshots" / version).mkdir(parents=True)
    with pytest.raises(InputError, match="cache with 2 versions; give the folder of one in "):
        find_model(str(cache))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("def")
    assert find_model(str(cache)) == cache / "snapshots" / "def"
    (cache / "refs" / "main").write_text("gone")
    (cache / "snapshots" / "def").rmdir()
    assert find_model(str(cache)) == cache / "snapshots" / "abc"
