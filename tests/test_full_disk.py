"""Full or read-only disks: the last good checkpoint and adapter survive.

A subprocess mounts a small file system that only it can see.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.devices import TESTS
from helpers.small_training import trained, training

from convert.adapters.files import read_lora
from erase.training import checkpoints
from erase.training.export import write_adapter
from flux_jax.errors import EraseError, RunError
from flux_jax.lora import Adapter

MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.slow
def test_a_disk_that_takes_no_more_costs_nothing_that_was_there(tmp_path: Path):
    """A full disk and a read-only one, in one process, which compiles once."""
    if subprocess.run([*MOUNTS, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount")
    disks = tmp_path / "full", tmp_path / "read-only"
    for folder in disks:
        folder.mkdir()
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import test_full_disk as t; "
    code += "from pathlib import Path; t.on_both(*map(Path, sys.argv[1:]))"
    mounted = "".join(f'mount -t tmpfs -o size=4m tmpfs "{place}" && ' for place in ("$3", "$4"))
    shell = [*MOUNTS, "sh", "-c", mounted + 'exec "$1" -c "$2" "$3" "$4" "$5"', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, code, *disks, tmp_path / "other"],
        cwd=TESTS.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def on_both(full: Path, read_only: Path, other: Path) -> None:
    on_a_full_disk(full, other / "full")
    on_a_disk_to_be_read(read_only, other / "read-only")


def fill(disk: Path) -> Path:
    """Fill the disk."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    return filler


def on_a_full_disk(disk: Path, other: Path) -> None:
    run = disk / "run"
    trained(run, iterations=4)
    adapter = training().adapter("", training().state)
    write_adapter(adapter, training().shared, run)
    before = read_lora(run / "adapter")[0]
    filler = fill(disk)
    with pytest.raises((RunError, OSError)) as full:
        trained(run, iterations=8)
    assert "No space left" in str(full.value) or "checkpoint could not be written" in str(
        full.value
    )
    changed = Adapter({k: _more(v) for k, v in adapter.lora.items()}, adapter.alpha)
    with pytest.raises((EraseError, OSError), match="No space left"):
        write_adapter(changed, training().shared, run)
    np.testing.assert_equal(read_lora(run / "adapter")[0], before)
    assert [path.name for path in (run / "adapter").iterdir()] == [
        "pytorch_lora_weights.safetensors"
    ]
    assert checkpoints.usable(run) == 4
    filler.unlink()
    same(trained(run, iterations=8), trained(other, iterations=8))


def on_a_disk_to_be_read(disk: Path, other: Path) -> None:
    run = disk / "run"
    trained(run, iterations=4)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises((RunError, OSError), match="Read-only file system"):
        trained(run, iterations=6)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert checkpoints.usable(run) == 4
    same(trained(run, iterations=6), trained(other, iterations=6))


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def _more(tree):
    return {k: _more(v) for k, v in tree.items()} if isinstance(tree, dict) else tree + 1
