"""Float8 product with one block of stacked weights on Hopper GPUs, by Pallas' Mosaic GPU.

XLA copies a block's float8 weights out of the stacked ones before each product; this kernel reads
them in place. Both operands lie with the summed axis last, as Hopper's float8 instructions need.
Axis letters: L blocks, M tokens, K inputs, N outputs.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float8e4m3fn, Float32, Int32

# Warpgroups that compute, along M, and blocks in flight: the streaming multiprocessors of an H100.
GROUPS, BLOCKS = 2, 132
# Tiles in flight, and the output's numbers that leave a warpgroup at once.
STAGES, LEAVING = 4, 64 * 64
# Tiles of N in a band of the snake through all tiles: neighbours share weights in the cache.
BAND = 8


class Tile(NamedTuple):
    """Sizes of a warpgroup's tile."""

    m: int
    n: int
    k: int


# In the order of preference where they take the same time.
TILES = (Tile(128, 128, 128), *(Tile(64, n, 128) for n in (256, 192, 128, 64)))
# Time of a tile beside its products, as columns of 64 rows.
OVERHEAD = 32


def runs_on(devices: Sequence[Any]) -> bool:
    """Whether the kernel can run: on one GPU of compute capability 9, with JAX 0.11 or later."""
    if len(devices) != 1 or devices[0].platform != "gpu" or jax.__version_info__ < (0, 11):
        return False
    return devices[0].compute_capability.startswith("9.")


def tile_for(tokens: int, inputs: int, outputs: int) -> Tile | None:
    """The tile that should be fastest for a product of these sizes; None if none fits.

    Tokens are filled up to whole tiles; products of fewer tokens than a tile are left to XLA.
    """

    def seconds(tile: Tile) -> int:
        tiles = -(-tokens // (GROUPS * tile.m)) * (outputs // tile.n)
        rounds = -(-tiles // BLOCKS)
        return rounds * (tile.m * tile.n // 64 + OVERHEAD)

    fitting = [
        tile
        for tile in TILES
        if tokens >= GROUPS * tile.m and inputs % tile.k == outputs % tile.n == 0
    ]
    return min(fitting, key=seconds, default=None)


def matmul(
    x: Float8e4m3fn[Array, "M K"],
    steps: Float32[Array, "M"],
    scale: Float32[Array, "N"],
    kernels: Float8e4m3fn[Array, "L N K"],
    block: Int32[Array, ""],
    tile: Tile | None = None,
) -> BFloat16[Array, "M N"]:
    """Computes (x * steps) (kernels[block] * scale) transposed, summed in float32.

    Args:
        x: rounded inputs.
        steps: their scales, one for each token.
        scale: the block's scales, one for each output.
        kernels: rounded weights of all blocks, by output.
        block: the index of the block.
        tile: sizes of a warpgroup's tile; by default those of `tile_for`.
    """
    chosen = tile or tile_for(x.shape[0], x.shape[1], kernels.shape[1])
    assert chosen, f"the kernel has no tile for {x.shape} and {kernels.shape}"

    @jax.custom_batching.custom_vmap
    def run(x: Array, steps: Array, scale: Array, kernels: Array, block: Array) -> Array:
        return _launch(x, steps, scale, kernels, block, chosen)

    @run.def_vmap
    def _(
        size: int, batched: Sequence[bool], x: Array, steps: Array, *weights: Array
    ) -> tuple[Array, bool]:
        assert batched == [True, True, False, False, False], batched
        scale, kernels, block = weights
        y = run(x.reshape(-1, x.shape[-1]), steps.reshape(-1), scale, kernels, block)
        return y.reshape(size, -1, y.shape[-1]), True

    return run(x, steps, scale, kernels, block)


def _launch(
    x: Array, steps: Array, scale: Array, kernels: Array, block: Array, tile: Tile
) -> Array:
    extra = -len(x) % (GROUPS * tile.m)
    m, n = len(x) + extra, kernels.shape[1]
    run = plgpu.kernel(
        functools.partial(_body, tile=tile, tiles=(m // (GROUPS * tile.m), n // tile.n)),
        out_type=jax.ShapeDtypeStruct((m, n), jnp.bfloat16),
        grid=(BLOCKS,),
        grid_names=("blocks",),
        num_threads=GROUPS + 1,
        thread_name="group",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )
    x, steps = jnp.pad(x, ((0, extra), (0, 0))), jnp.pad(steps, (0, extra))
    return run(x, steps, scale, kernels, block[None])[: m - extra]


def _transforms(columns: int, bits: int) -> tuple[Any, ...]:
    """Layout of a matrix in shared memory that is read without conflicts."""
    swizzle = plgpu.find_swizzle(columns * bits)
    return plgpu.TilingTransform((8, 8 * swizzle // bits)), plgpu.SwizzleTransform(swizzle)


def _body(
    x: Any, steps: Any, scale: Any, kernels: Any, block: Any, out: Any, *, tile: Tile, tiles: Any
) -> None:
    """One of `BLOCKS` blocks: every tile of the result whose turn it is."""
    pipeline = functools.partial(_pipeline, tile, x.shape[1] // tile.k)
    allocations = pipeline(lambda *_: None, lambda *_: None).get_allocations(x, kernels.at[0])
    width = LEAVING // tile.m
    leaving = plgpu.SMEM((GROUPS, 2, tile.m, width), out.dtype, transforms=_transforms(width, 16))

    @functools.partial(
        pl.run_scoped, allocations=allocations, leaving=leaving, collective_axes="group"
    )
    def _(allocations: Any, leaving: Any) -> None:
        group, index = jax.lax.axis_index("group"), block[0]

        @plgpu.nd_loop((tiles[0] * tiles[1],), collective_axes="blocks")
        def _(loop: Any) -> None:
            at_m, at_n = plgpu.planar_snake(loop.index[0], tiles, 1, BAND)
            rows = pl.ds((at_m * GROUPS) * tile.m, GROUPS * tile.m)
            columns = pl.ds(at_n * tile.n, tile.n)
            own = pl.ds((at_m * GROUPS + group) * tile.m, tile.m)

            def finish(run: Any) -> None:
                @functools.partial(
                    pl.run_scoped, total=plgpu.WGMMAAccumulatorRef((tile.m, tile.n), jnp.float32)
                )
                def _(total: Any) -> None:
                    run(total)
                    y = total[...] * _spread(steps.at[own], (tile.m, tile.n), 0)
                    y = y * _spread(scale.at[columns], (tile.m, tile.n), 1)
                    _store(y.astype(out.dtype), leaving.at[group], out.at[own, columns])

            def multiply(_: Any, x: Any, weights: Any, total: Any) -> Any:
                mine = x.at[pl.ds(group * tile.m, tile.m)]
                plgpu.wgmma(total, mine, weights.transpose((1, 0)))
                plgpu.wgmma_wait(0)
                return total

            pipeline(multiply, finish)(
                x.at[rows, :], kernels.at[index].at[columns, :], allocations=allocations
            )

        plgpu.wait_smem_to_gmem(0, wait_read_only=True)


def _pipeline(tile: Tile, count: int, multiply: Any, finish: Any) -> Any:
    """Copies tiles of both operands along K while the previous ones are multiplied."""

    def spec(rows: int) -> plgpu.BlockSpec:
        return plgpu.BlockSpec(
            (rows, tile.k),
            lambda at: (0, at),
            transforms=_transforms(tile.k, 8),
            memory_space=plgpu.SMEM,
        )

    return plgpu.emit_pipeline_warp_specialized(
        multiply,
        grid=(count,),
        memory_registers=40,
        in_specs=[spec(GROUPS * tile.m), spec(tile.n)],
        wg_axis="group",
        num_compute_wgs=GROUPS,
        max_concurrent_steps=STAGES,
        compute_context=finish,
    )


def _spread(values: Any, shape: tuple[int, int], axis: int) -> Array:
    """Reads scales from the GPU's memory, each for a row or a column of a tile."""
    # JAX 0.10, which does not get this far (`runs_on`), declares another argument.
    load: Any = plgpu.load
    return jax.lax.broadcast_in_dim(load(values, optimized=False), shape, [axis])


def _store(y: Array, leaving: Any, out: Any) -> None:
    """Writes a warpgroup's result through two buffers in shared memory."""
    width = leaving.shape[-1]
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    for turn, start in enumerate(range(0, y.shape[1], width)):
        part = slice(start, start + width)
        plgpu.wait_smem_to_gmem(1, wait_read_only=True)
        leaving[turn % 2] = y[:, part]
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(leaving.at[turn % 2], out.at[:, part])
