"""Small valid files of every kind that is read, for damaging them."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from convert.adapters.files import write_layers
from convert.adapters.layers import Layers, Pair
from erase.evaluation.emoji_judge import WEIGHTS
from erase.evaluation.judge_network import JudgeConfig, JudgeNetwork, init
from erase.evaluation.statistics import CELLS
from erase.runs import RunConfig
from erase.runtime import run_folder
from erase.training import checkpoints
from flux_jax.tree import flatten
from flux_jax.weights.safetensors_files import write_file

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "emoji-flux"
SIDES = ("before", "silenced", "after")
JUDGE = JudgeConfig(("cat", "dog"), ("plain", "dark"), ("on",), (8, 8), (1, 1), 4)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


def write_run(folder: Path) -> None:
    """A run's folder, with an adapter, results and the files of a results table."""
    (folder / run_folder.PICTURES).mkdir(parents=True)
    share = {"found": 3, "of": 4, "share": 0.75, "low": 0.3, "high": 0.95}
    sides = dict.fromkeys(SIDES, share)
    example: dict[str, Any] = {"cell": "Acc_e", "prompt": "a cat", "seed": 1, "sought": "cat"}
    rng = np.random.default_rng(0)
    for side in ("before", "after"):
        name = f"{run_folder.PICTURES}/Acc_e-00-{side}.png"
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name)
        example |= {side: name, f"found_{side}": True, "word": ""}
    config = RunConfig(concept="cat", synonyms=("kitty",), prompts=("a {}",))
    described = asdict(config) | {"command": "erase", "synonyms_from": "WordNet"}
    _write_json(folder / run_folder.CONFIG, described)
    evaluation = {
        **{"concept": "cat", "model": "m", "strength": 1.0, "steps": 4, "guidance": 3.5},
        **{"height": 8, "width": 8, "adapter_parameters": 10, "kind": "entity"},
        "cells": {cell: dict.fromkeys(SIDES[::2], share) for cell in CELLS},
        "synonyms": [
            {"concept": "cat", "word": "kitty", "before": 1, "after": 0, "of": 4, "left_out": True}
        ],
        "concepts": [{"concept": "dog", "before": 3, "after": 2, "of": 4}],
        "H": {"before": 0.4, "after": 0.9},
        "pictures": [example],
        "attention": [{key: example[key] for key in ("prompt", "seed", "before", "after")}],
        "attention_times": [0.9, 0.5],
    }
    _write_json(folder / run_folder.EVALUATION, evaluation)
    _write_json(folder / f"{run_folder.ATTACKS_STEM}.json", {"cells": {"misspelt": sides}})
    _write_json(
        folder / run_folder.SENTENCES, {"concept": "cat", "sentences": ["a cat"], "source": "x"}
    )
    _write_json(
        folder / run_folder.IRRELEVANT, {"concept": "cat", "pools": [["sky"]], "source": ""}
    )
    maps = rng.random((1, 4, 4), np.float32)
    np.savez_compressed(folder / run_folder.ATTENTION, before=maps, after=maps)
    (folder / run_folder.ADAPTER).mkdir()
    results = {"question": "q", "concepts": ["cat"], "seeds": [0], "pictures": 4}
    row = {"concept": "cat", "kind": "entity", "seed": 0, "cells": evaluation["cells"]}
    variant = {"changes": {}, "seconds": 1.0, "rows": [row]}
    _write_json(folder / "results.json", {**results, "variants": {"a": variant}})


def write_log(folder: Path) -> None:
    """A run's `metrics.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step, "loss_esd": 1 / step, "seconds": 0.5} for step in range(1, 7)]
    (folder / run_folder.METRICS).write_text("\n".join(map(json.dumps, lines)) + "\n")


def write_checkpoint(folder: Path) -> None:
    """A sealed folder of a few files."""
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "d").write_bytes(bytes(range(256)))
    _write_json(folder / "record", {"keys": [[0, 1]]})
    checkpoints.seal(folder)


def write_model(folder: Path) -> None:
    """The shipped model's folder; its large weights are linked."""
    for name in ("transformer", "vae", "text_encoder_2"):
        (folder / name).mkdir(parents=True)
        for file in (MODEL / name).iterdir():
            if file.suffix == ".json":
                shutil.copy(file, folder / name)
            else:
                (folder / name / file.name).symlink_to(file.resolve())
    for name in ("text_encoder", "tokenizer", "tokenizer_2", "scheduler"):
        shutil.copytree(MODEL / name, folder / name)
    for name in ("model_index.json", "erase.json"):
        shutil.copy(MODEL / name, folder)


def write_judge(folder: Path) -> None:
    """A judge of random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = jax.eval_shape(lambda: init(JudgeNetwork(JUDGE), jax.random.key(0), 16))
    rng = np.random.default_rng(0)
    tensors = {path: rng.random(leaf.shape, np.float32) for path, leaf in flatten(shapes).items()}
    write_file(folder / WEIGHTS, tensors, {"format": "flax"})
    _write_json(folder / "config.json", asdict(JUDGE) | {"size": 16})


def layers() -> Layers:
    """An adapter on the text stream of two blocks."""
    rng = np.random.default_rng(0)
    return {
        (f"dual_blocks/attn/{name}", block): Pair(
            rng.random((2, 8), np.float32), rng.random((8, 2), np.float32), np.array(2, np.float32)
        )
        for name in ("add_q_proj", "add_k_proj")
        for block in (0, 1)
    }


def lokr() -> dict[str, np.ndarray]:
    """Tensors of LyCORIS' LoKr: both factors whole, the second a product, both products."""
    whole: dict[str, tuple[int, ...]] = {"lokr_w1": (2, 2), "lokr_w2": (4, 4)}
    first = {"lokr_w1_a": (2, 2), "lokr_w1_b": (2, 2)}
    second = {"lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)}
    forms = (whole, {"lokr_w1": (2, 2), **second, "dora_scale": (8, 1)}, {**first, **second})
    return _tensors({_lycoris(block): form | {"alpha": ()} for block, form in enumerate(forms)})


def loha() -> dict[str, np.ndarray]:
    """Tensors of LyCORIS' LoHa on two blocks, the second with a magnitude."""
    shapes: dict[str, tuple[int, ...]] = {
        **{"hada_w1_a": (8, 2), "hada_w1_b": (2, 8)},
        **{"hada_w2_a": (8, 2), "hada_w2_b": (2, 8), "alpha": ()},
    }
    return _tensors({_lycoris(0): shapes, _lycoris(1): shapes | {"dora_scale": (8, 1)}})


def _lycoris(block: int) -> str:
    return f"lycoris_transformer_blocks_{block}_attn_add_q_proj"


def xlabs() -> dict[str, np.ndarray]:
    """Tensors of XLabs' layout, on blocks of both kinds."""
    widths = {
        **{"double_blocks.0.processor.qkv_lora2": 24, "double_blocks.1.processor.proj_lora2": 8},
        "single_blocks.0.processor.qkv_lora": 24,
    }
    return _tensors(
        {
            stem: {"down.weight": (2, 8), "up.weight": (outputs, 2)}
            for stem, outputs in widths.items()
        }
    )


def _tensors(shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> dict[str, np.ndarray]:
    """Random tensors by layer and part; the layer's name and the part's are joined by a dot."""
    rng = np.random.default_rng(0)
    return {
        f"{stem}.{part}": np.asarray(rng.random(shape), np.float32)
        for stem, parts in shapes.items()
        for part, shape in parts.items()
    }


# Layouts that are read and not written.
READ_ONLY: Mapping[str, Callable[[], dict[str, np.ndarray]]] = {
    "LoKr": lokr,
    "LoHa": loha,
    "XLabs": xlabs,
}


def write_adapter(folder: Path, layout: str) -> None:
    """An adapter in a layout, with PEFT's configuration in its header and beside it."""
    peft = json.dumps({"r": 2, "lora_alpha": 2, "alpha_pattern": {"to_q": 4}})
    header: Mapping[str, str] = {
        "concept": "cat",
        "settings": json.dumps({"concept": "cat", "irrelevant": ["sky", "tree", "bread"]}),
        "lora_adapter_metadata": peft,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "peft":
        file = write_layers(folder / "adapter_model.safetensors", "diffusers", layers(), header)
        assert file.is_file()
        (folder / "adapter_config.json").write_text(peft)
    elif layout in READ_ONLY:
        write_file(folder / "adapter.safetensors", READ_ONLY[layout](), {"format": "pt", **header})
    else:
        write_layers(folder, layout, layers(), header)


def write_pictures(folder: Path) -> None:
    """Pictures of every format with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index, suffix in enumerate((".png", ".jpg", ".webp")):
        pixels = rng.integers(0, 256, (12, 10, 3 + (suffix == ".png")), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}{suffix}")
        (folder / f"{index}.txt").write_text("a caption")


def write_shards(folder: Path) -> None:
    """A model's folder of two shards and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for number in (1, 2):
        name = f"model-{number:05}-of-00002.safetensors"
        write_file(
            folder / name, {f"t{number}": np.arange(6.0, dtype=np.float32)}, {"format": "pt"}
        )
        places[f"t{number}"] = name
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
