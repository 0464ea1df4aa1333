r"""Time an iteration with the frozen model's results stored or computed, side by side.

    python -m benchmarks.speed.iterations --config configs/nudity.py --out iterations.json
    python -m benchmarks.speed.iterations --config configs/emoji_soccer_ball.py --out small.json

All variants are compiled in one process, and each repeat runs an iteration of every variant.
Weights and banks are random numbers of the model's sizes: nothing is read but the model's
configuration. FLUX.1 [dev] takes a GPU with 80 GB. `cpu_seconds` is the process's time on all
cores, which other processes hardly change.
"""

import dataclasses
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jaxtyping import PyTree
from rich.console import Console

from benchmarks.speed.cases import WARM_UPS, Record, Work, times
from benchmarks.speed.flux_ours import Program, random_bank, random_params
from convert import tables
from erase.cli.flags import FLAG, begin, configured, define_flag, parse_flags
from erase.config.schema import Config
from erase.methods import method_of
from erase.methods.planning import flops
from erase.methods.planning.configured import context_of, start
from erase.model.open import open_model
from erase.runs import load_config, merge_fields
from erase.runtime.files import write
from erase.runtime.mesh import make_mesh
from flux_jax.errors import InputError, exits_cleanly
from flux_jax.models.transformer import FluxTransformer

# Width of the table in columns, also in files.
WIDTH = 120
COMPUTED: Mapping[str, Any] = {"bank": {"teacher": "computed"}}
STORED: Mapping[str, Any] = {"bank": {"teacher": "stored"}}
FROZEN: Mapping[str, Any] = {"upper": {"rsc_features": "frozen"}}
# With the frozen model's velocity as the target of L_lora.
BASE: Mapping[str, Any] = {"upper": {"lora_target": "base"}}
NOISES: Mapping[str, Any] = {"upper": {"lora_target": "base", "noises": 16}}
# Changes to a configuration. The first of each target of L_lora computes everything.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "computed": COMPUTED,
    "stored": STORED,
    "stored, frozen features": merge_fields(STORED, FROZEN),
    "base: computed": merge_fields(COMPUTED, BASE),
    "base: stored": merge_fields(STORED, BASE),
    "base: stored, 16 noises": merge_fields(STORED, NOISES),
    "base: stored, 16 noises, frozen features": merge_fields(merge_fields(STORED, NOISES), FROZEN),
}


SECONDS = ("seconds", "cpu_seconds")


@dataclass(frozen=True)
class Model:
    """A model's sizes.

    Attributes:
        transformer: the transformer.
        image_tokens: tokens of a square picture.
        text_tokens: tokens of a prompt.
    """

    transformer: FluxTransformer
    image_tokens: int
    text_tokens: int

    @classmethod
    def of(cls, config: Config) -> "Model":
        """Read the sizes of a configuration's model; no weights are read.

        Raises:
            InputError: the picture is not a square of tokens.
        """
        pipe = open_model(config, unread=True)
        tokens = len(pipe.image_ids(config.height, config.width))
        if math.isqrt(tokens) ** 2 != tokens:
            raise InputError(
                f"height = {config.height} and width = {config.width} must be equal here"
            )
        return cls(pipe.transformer, tokens, pipe.tokenizer_2.model_max_length)


class Iteration:
    """A variant's compiled updates, and its state."""

    def __init__(self, config: Config, model: Model, params: PyTree) -> None:
        """Compile the updates for random numbers.

        Args:
            config: the variant's configuration.
            model: the model's sizes.
            params: the transformer's parameters.
        """
        # `Work` counts the tokens of pictures of 16 pixels a token.
        work = Work("iteration", 16 * math.isqrt(model.image_tokens), model.text_tokens)
        context = context_of(config, model.transformer, make_mesh(config.mesh, 1, 1))
        state = jax.tree.map(lambda leaf: leaf[None], start(jax.random.key(5), params, config))
        self.state = context.divided(state)
        self.bank = context.placed(random_bank(config, model.transformer, work))
        self.params = params
        self.keys = jax.random.split(jax.random.key(4), (2, 1))
        self.programs = [
            Program.of(step.update, self.state, params, self.bank, key, context=context)
            for step, key in zip(method_of(config).steps(config).values(), self.keys, strict=False)
        ]

    def run(self) -> tuple[float, float]:
        """Run an iteration, and return its seconds and its seconds of the processor."""
        began, cpu = time.perf_counter(), time.process_time()
        for program, key in zip(self.programs, self.keys, strict=False):
            self.state, metrics = program.call(self.state, self.params, self.bank, key)
            jax.block_until_ready(metrics)
        jax.block_until_ready(self.state)
        return time.perf_counter() - began, time.process_time() - cpu


def measure(
    config: Config, model: Model, repeats: int, variants: Mapping[str, Mapping[str, Any]] = VARIANTS
) -> dict[str, Record]:
    """Time an iteration of each variant.

    Args:
        config: the configuration that the variants change.
        model: its model's sizes.
        repeats: of each variant.
        variants: changes, by name.
    """
    params = random_params(dataclasses.asdict(model.transformer.config))
    dtype = jnp.dtype(model.transformer.dtype)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    fields = dataclasses.asdict(config)
    configs = {name: load_config(merge_fields(fields, each)) for name, each in variants.items()}
    made = {name: Iteration(each, model, params) for name, each in configs.items()}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for _ in range(WARM_UPS + repeats):
        for name, each in made.items():
            samples[name].append(each.run())
    sizes, records = model.transformer.config, {}
    for name, each in made.items():
        seconds, cpu = zip(*samples[name][WARM_UPS:], strict=True)
        counted = flops.iteration(configs[name], sizes, model.image_tokens, model.text_tokens)
        records[name] = {
            **times(seconds),
            "cpu_seconds": times(cpu)["seconds"],
            "compile_seconds": sum(program.seconds for program in each.programs),
            "memory_bytes": max((p.memory for p in each.programs if p.memory), default=None),
            "bank_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(each.bank)),
            "flops": config.batch_size * counted,
            "finite": all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(each.state.lora)),
        }
    return records


def show(records: Mapping[str, Record]) -> None:
    """Print a row for each variant, with its ratios to the variant that computes everything."""
    table = tables.Table(title="An iteration; ratios to the first of the same target")
    table.add_column("", no_wrap=True)
    for heading in ("ms", "fastest", "slowest", "ratio", "CPU ms", "ratio", "GB of bank", "TFLOP"):
        table.add_column(heading, justify="right")
    for name, each in records.items():
        first = records.get("base: computed" if name.startswith("base") else "computed")
        ratios = {key: f"{each[key] / first[key]:.2f}" if first else "" for key in SECONDS}
        table.add_row(
            name,
            *(f"{1e3 * each[key]:.1f}" for key in ("seconds", "fastest", "slowest")),
            ratios["seconds"],
            f"{1e3 * each['cpu_seconds']:.1f}",
            ratios["cpu_seconds"],
            f"{each['bank_bytes'] / 1e9:.2f}",
            f"{each['flops'] / 1e12:.3g}",
        )
    console = Console()
    console.width = max(console.width, WIDTH)
    tables.show(table, console=console)


@exits_cleanly
def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    begin(argv)
    given, runs = flags.FLAGS, configured()
    config, *others = runs.values()
    if others or config.method != "erase_anything":
        raise InputError(
            f"config: {len(runs)} runs of {config.method}; name one run of erase_anything"
        )
    variants = {name: VARIANTS[name] for name in given.variant}
    records = measure(config, Model.of(config), given.repeats, variants)
    head = {"device": jax.devices()[0].device_kind or platform.machine(), "jax": jax.__version__}
    head |= {"height": config.height, "dtype": config.model.dtype, "batch": config.batch_size}
    write(Path(given.out), json.dumps({**head, "variants": records}, indent=1) + "\n")
    show(records)


if __name__ == "__main__":
    define_flag()
    flags.declare_key_flag(FLAG)
    flags.DEFINE_string("out", None, "JSON file of the result.", required=True)
    flags.DEFINE_multi_enum(
        "variant", list(VARIANTS), list(VARIANTS), "Measure these only; may be repeated."
    )
    flags.DEFINE_integer("repeats", 10, "Repeats of each variant.", lower_bound=1)
    app.run(main, flags_parser=parse_flags)
