"""--overwrite removes what a run wrote, and nothing of others; other folders are refused."""

import json
import shutil
from pathlib import Path

import pytest

from erase.runtime.overwrite import check, clear
from flux_jax.errors import InputError

RECORD = json.dumps({"concept": "cat", "model": {"path": "tiny"}, "command": "python -m erase"})
CARD = "---\ntags: [flux, lora, diffusers, concept-erasure]\n---\n"
STEP = ("manifest.json", "_CHECKPOINT_METADATA", "state/d/a", "record/metadata")
RUNS = {
    "config.json": RECORD,
    "metrics.jsonl": "",
    "replay-3.json": "",
    "report.html": "",
    "calibration.json": "",
    "adapter/pytorch_lora_weights.safetensors": "",
    "adapter/README.md": CARD,
    "pictures/Acc_e-00-before.png": "",
    f"cache/{'0a' * 16}/{'1b' * 16}": "",
    **{f"checkpoints/{step}/{name}": "" for step in (3, 6) for name in STEP},
    "checkpoints/9.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/d/a": "",
    **{f"damaged/3-1/{name}": "" for name in STEP},
}
# Files of others that may lie beside a run's.
BESIDE = (
    "pictures/holiday.jpg",
    "cache/mine.bin",
    "pictures/Acc_e.png",
    "checkpoints/my_other_model/w.bin",
    "damaged/car.txt",
    "adapter/mine.safetensors",
    "notes.txt",
    "summary.csv.old",
    "config.yaml",
)


def put(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("names", [[""], ["a", "b"]])
def test_only_what_a_run_wrote_goes(tmp_path: Path, names: list[str]):
    mine = dict.fromkeys(BESIDE, "mine")
    for name in names:
        put(tmp_path / name, RUNS | mine)
    if len(names) > 1:
        put(tmp_path, {k: v for k, v in RUNS.items() if k.startswith("checkpoints")} | mine)
        put(tmp_path, {"summary.csv": "", "pictures/Acc_e-00-before.png": "mine"})
    outside = tmp_path.with_name("outside")
    put(outside, {"4/state/d/a": "mine"})
    (tmp_path / "checkpoints" / "link").symlink_to(outside)
    check(tmp_path, names, overwrite=True)
    clear(tmp_path, names)
    left = {f"{name}/{file}".strip("/") for name in {*names, ""} for file in BESIDE}
    if len(names) > 1:
        left.add("pictures/Acc_e-00-before.png")
    assert files(tmp_path) - {"checkpoints/link/4/state/d/a"} == left
    assert files(outside) == {"4/state/d/a"}
    shutil.rmtree(outside)
    # The folder is as good as new.
    check(tmp_path, names, overwrite=False)


def test_a_runs_folder_alone_becomes_empty(tmp_path: Path):
    put(tmp_path, RUNS)
    clear(tmp_path, [""])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [*RUNS, *BESIDE])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_without_a_record_keeps_everything(tmp_path: Path, name: str, overwrite: bool):
    content = "mine" if name == "config.json" else RUNS.get(name, "mine")
    put(tmp_path, {name: content})
    refused = name in {"config.json", "adapter/pytorch_lora_weights.safetensors"}
    # What --overwrite would remove if it were a run's.
    refused |= overwrite and name not in ("notes.txt", "summary.csv.old", "config.yaml")
    if refused:
        with pytest.raises(InputError, match="name another folder") as error:
            check(tmp_path, [""], overwrite=overwrite)
        assert str(error.value).count("\n") == 0
        assert name.split("/")[0] in str(error.value)
    else:
        check(tmp_path, [""], overwrite=overwrite)
    clear(tmp_path, [""])
    assert files(tmp_path) == {name}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter/README.md", "mine"),
        ("checkpoints/500/model.bin", "mine"),
        ("checkpoints/500", "mine"),
        ("checkpoints/7/state/d/a", "mine"),
    ],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_files_that_a_run_would_replace_or_misread_are_named(
    tmp_path: Path, name: str, content: str, overwrite: bool
):
    put(tmp_path, {"config.json": RECORD, name: content})
    if name.endswith("/a"):
        put(tmp_path, {"checkpoints/7/optimizer.pt": "mine"})
    with pytest.raises(InputError, match=r"no run wrote .*: move it, or name another folder"):
        check(tmp_path, [""], overwrite=overwrite)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"concept": 3, "model": {}, "command": ""}', "[" * 99999]
)
def test_other_json_is_no_record(tmp_path: Path, content: str):
    put(tmp_path, {"config.json": content, "metrics.jsonl": "mine"})
    for overwrite in (True, False):
        with pytest.raises(InputError, match=r"no run wrote config\.json"):
            check(tmp_path, [""], overwrite=overwrite)
    clear(tmp_path, [""])
    assert files(tmp_path) == {"config.json", "metrics.jsonl"}
