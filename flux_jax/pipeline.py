"""From prompts to images: tokenise, encode, denoise, decode.

Axis letters: B batch, T text tokens, S image tokens, C packed latent channels, E text width,
P pooled width.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, PyTree, UInt8

from flux_jax import programs, progress, sharding
from flux_jax.errors import InputError
from flux_jax.lora import Adapter, check, combine, fitted
from flux_jax.models import dora
from flux_jax.models.clip.text import CLIPTextEncoder
from flux_jax.models.t5 import T5Encoder
from flux_jax.models.tokenizers import clip_ids, read_tokenizer, t5_ids
from flux_jax.models.transformer import FluxTransformer
from flux_jax.models.vae import AutoencoderKL, latent_ids
from flux_jax.programs import Conditioning, Denoiser
from flux_jax.sampling import Schedule
from flux_jax.settings import check_sampling
from flux_jax.system import xla_flags
from flux_jax.weights.hub import find_model
from flux_jax.weights.loading import COMPONENTS, Weights, abstract_params, build, check_widths
from flux_jax.weights.source import open_source, read_schedule, root_of

if TYPE_CHECKING:
    from flux_jax.models.tokenizers import PreTrainedTokenizerBase


class Changes(TypedDict, total=False):
    """Optional modifications of the transformer while it generates.

    Attributes:
        adapters: adapters with their strengths; their effects add up.
        silenced: 1 where a prompt's T5 token contributes nothing to the image.
    """

    adapters: Sequence[tuple[Adapter, Float[Array, ""] | float]]
    silenced: Float[ArrayLike, "B T"] | None


@dataclass(frozen=True)
class Pipeline:
    """A FLUX.1 pipeline; every step can be called separately.

    Attributes:
        params: parameters under the keys transformer, text_encoder, text_encoder_2 and vae; those
            of a loaded pipeline are read from disk on first use.
        mesh: devices that share the weights and the samples of a batch, see `flux_jax.sharding`.
        remembered: encoded prompts in host memory, see `remember`.
        encoded: the prompts that `remember` encoded together, and its batch, in order. Repeating
            these calls gives the same bits, which depend on the batch.
    """

    transformer: FluxTransformer
    text_encoder: CLIPTextEncoder
    text_encoder_2: T5Encoder
    vae: AutoencoderKL
    # Not `PyTree`: a runtime type checker would inspect the leaves, which reads them from disk.
    params: Mapping[str, Any]
    tokenizer: "PreTrainedTokenizerBase"
    tokenizer_2: "PreTrainedTokenizerBase"
    schedule: Schedule
    mesh: Mesh
    remembered: dict[str, Conditioning] = field(default_factory=dict)
    encoded: list[tuple[list[str], int]] = field(default_factory=list)

    def on(self, mesh: Mesh) -> "Pipeline":
        """The same pipeline on other devices; this one keeps its devices.

        Weights that this pipeline has read are freed, so that they do not take memory twice;
        either pipeline reads them again when it needs them.
        """
        if mesh == self.mesh:
            return self
        if isinstance(self.params, Weights):
            self.params.release(*self.params)
            return replace(self, mesh=mesh, params=self.params.on(mesh))
        return replace(self, mesh=mesh, params=sharding.place_weights(mesh, self.params))

    @property
    def pixels_per_token(self) -> int:
        """Side in pixels of the square that one image token represents."""
        return 2 * self.vae.config.spatial_factor

    @functools.cached_property
    def shapes(self) -> PyTree:
        """Shapes of the transformer's parameters, as `jax.ShapeDtypeStruct`; allocates nothing."""
        return abstract_params("transformer", asdict(self.transformer.config))

    def check(self, adapter: Adapter, source: str = "the adapter") -> None:
        """Checks that an adapter fits this transformer.

        Args:
            adapter: the adapter.
            source: its name in messages.

        Raises:
            InputError: one of its layers is missing here, or has another shape.
        """
        check(adapter.lora, self.shapes, source)

    def adapted(
        self, adapters: Sequence[tuple[Adapter, Float[Array, ""] | float]]
    ) -> PyTree | None:
        """One tree with the summed effect of adapters at their strengths; None without adapters.

        Raises:
            InputError: an adapter does not fit this transformer.
        """
        read = []
        for adapter, strength in adapters:
            fitting = fitted(adapter, self.shapes)
            if dora.is_dora(fitting):
                with jax.set_mesh(self.mesh):
                    fitting = dora.resolve(fitting, self.params["transformer"])
                fitting = sharding.gather(self.mesh, fitting)
            read.append((fitting, strength))
        return combine(read, self.transformer.dtype)

    def denoiser(
        self,
        image_ids: Float[Array, "S 3"],
        guidance: Float[Array, "B"] | Float[Array, ""] | float,
        adapters: Sequence[tuple[Adapter, Float[Array, ""] | float]] = (),
    ) -> Denoiser:
        """The transformer with adapters as a velocity field; call it with `mesh` set.

        Args:
            image_ids: positions of the image tokens.
            guidance: distilled guidance scale, one for all samples or one for each.
            adapters: adapters with their strengths.

        Raises:
            InputError: an adapter does not fit this transformer.
        """
        lora = self.adapted(adapters)
        return Denoiser(self.transformer, self.params["transformer"], image_ids, guidance, lora)

    def release(self, *names: str) -> None:
        """Frees the memory of loaded models; they are read again when needed."""
        if isinstance(self.params, Weights):
            self.params.release(*names)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Latent height and width (before 2 x 2 packing) of an image.

        Raises:
            InputError: a side is not a positive multiple of `pixels_per_token`.
        """
        step = self.pixels_per_token
        for name, side in (("height", height), ("width", width)):
            if side < step or side % step:
                near = max(step, round(side / step) * step)
                raise InputError(
                    f"{name} = {side} is not a multiple of {step} pixels; the nearest is {near}"
                )
        factor = self.vae.config.spatial_factor
        return height // factor, width // factor

    def image_ids(self, height: int, width: int) -> Float[Array, "S 3"]:
        """Positions of an image's tokens."""
        return latent_ids(*self.grid(height, width))

    def tokenize(
        self, prompts: Sequence[str], cut: bool = False
    ) -> tuple[Int[np.ndarray, "B K"], np.ndarray]:
        """Token ids for CLIP (truncated to its limit, as in FLUX) and for T5 (if `cut`, too).

        Raises:
            InputError: a prompt has more T5 tokens than `tokenizer_2.model_max_length`.
        """
        return clip_ids(self.tokenizer, prompts), t5_ids(self.tokenizer_2, prompts, cut)

    def encode(self, prompts: Sequence[str], cut: bool = False) -> Conditioning:
        """Encodes prompts with both text encoders, unless `remember` has encoded all of them.

        Raises:
            InputError: a prompt is over the token limit.
        """
        if self.remembered.keys() >= set(prompts):
            return sharding.gather(self.mesh, self.recall(prompts))
        encoded = programs.encode(
            self.text_encoder,
            self.text_encoder_2,
            self.params["text_encoder"],
            self.params["text_encoder_2"],
            *sharding.share_out(self.mesh, self.tokenize(prompts, cut)),
        )
        return sharding.gather(self.mesh, encoded)

    def remember(self, prompts: Sequence[str], batch: int, cut: bool = False) -> None:
        """Encodes prompts in advance, each once, in batches of one size, with a progress bar.

        The results are kept in host memory, so that the text encoders can be freed before the
        transformer is loaded. With `cut`, long prompts lose their end, as in diffusers.

        Raises:
            InputError: a prompt is over the token limit, or batch is below 1.
        """
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.remembered]
        if not fresh:
            return
        for rows in batches(len(fresh), batch, "encoding prompts"):
            texts = [fresh[row] for row in rows]
            # Every batch size compiles, so pad to powers of two.
            more = min(batch, 1 << (len(texts) - 1).bit_length()) - len(texts)
            encoded = jax.tree.map(np.asarray, self.encode(texts + texts[-1:] * more, cut))
            self.remembered.update((text, encoded[row]) for row, text in enumerate(texts))
        self.encoded.append((fresh, batch))

    def recall(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of remembered prompts, in host memory."""
        rows = [self.remembered[prompt] for prompt in prompts]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def noise(self, seeds: Sequence[int], height: int, width: int) -> Float[Array, "B S C"]:
        """Packed standard normal latents from one seed per image, independent of the batch."""
        height, width = self.grid(height, width)
        shape = (height // 2 * (width // 2), self.transformer.config.in_channels)
        # As in any JAX key, only 32 bits of a seed are used.
        keys = jax.vmap(jax.random.key)(np.asarray(seeds) & 0xFFFFFFFF)
        return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

    def velocity(
        self,
        latents: Float[Array, "B S C"],
        conditioning: Conditioning,
        timestep: Float[Array, "B"],
        image_ids: Float[Array, "S 3"],
        guidance: float = 3.5,
        adapters: Sequence[tuple[Adapter, Float[Array, ""] | float]] = (),
    ) -> Float[Array, "B S C"]:
        """Predicts the velocity; a model without guidance embedding ignores guidance."""
        samples = sharding.share_out(self.mesh, (latents, conditioning, timestep))
        model = self.denoiser(image_ids, guidance, adapters)
        with jax.set_mesh(self.mesh):
            velocity = programs.velocity(model, *samples)
        return sharding.gather(self.mesh, velocity)

    def denoise(
        self,
        noise: Float[Array, "B S C"],
        conditioning: Conditioning,
        image_ids: Float[Array, "S 3"],
        steps: int = 28,
        guidance: float = 3.5,
        adapters: Sequence[tuple[Adapter, Float[Array, ""] | float]] = (),
        silenced: Float[ArrayLike, "B T"] | None = None,
    ) -> Float[Array, "B S C"]:
        """Integrates the velocity from noise (t = 1) to packed latents (t = 0) in Euler steps."""
        check_sampling(steps, guidance)
        *samples, silenced = sharding.share_out(self.mesh, (noise, conditioning, silenced))
        model = self.denoiser(image_ids, guidance, adapters)
        sigmas = self.schedule.sigmas(steps, noise.shape[1])
        with jax.set_mesh(self.mesh):
            latents = programs.denoise(model, *samples, sigmas, silenced)
        return sharding.gather(self.mesh, latents)

    def decode(
        self, latents: Float[Array, "B S C"], height: int, width: int
    ) -> UInt8[np.ndarray, "B h w 3"]:
        """Decodes packed latents to images."""
        grid = self.grid(height, width)
        latents = sharding.share_out(self.mesh, latents)
        pictures = programs.decode(self.vae, self.params["vae"], latents, grid)
        return np.asarray(sharding.gather(self.mesh, pictures))

    def encode_pictures(self, pictures: UInt8[np.ndarray, "B h w 3"]) -> Float[Array, "B S C"]:
        """Encodes images as packed latents, the means of their distributions; `decode` inverts it.

        Raises:
            InputError: a side is not a positive multiple of `pixels_per_token`.
        """
        self.grid(*pictures.shape[1:3])
        pictures = sharding.share_out(self.mesh, pictures)
        return sharding.gather(
            self.mesh, programs.encode_pictures(self.vae, self.params["vae"], pictures)
        )

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        steps: int = 28,
        guidance: float = 3.5,
        height: int = 512,
        width: int = 512,
        latents: Float[Array, "B S C"] | None = None,
        **changes: Unpack[Changes],
    ) -> UInt8[np.ndarray, "B h w 3"]:
        """Generates an image for every prompt.

        Args:
            prompts: one per image.
            seeds: one per image; 0, 1, ... if neither seeds nor latents are set.
            steps: Euler steps.
            guidance: distilled guidance scale.
            height: pixels.
            width: pixels.
            latents: packed noise to start from, instead of seeds.
            **changes: modifications of the transformer: `adapters=`, `silenced=`; see `Changes`.

        Raises:
            InputError: invalid sizes, steps, guidance, seeds, latents or a prompt.
            TypeError: an unknown keyword argument.
        """
        # Before any work, as Python refuses unknown arguments.
        if unknown := changes.keys() - Changes.__annotations__:
            raise TypeError(f"a pipeline takes no argument {min(unknown)!r}")
        check_sampling(steps, guidance)
        if latents is None:
            seeds = range(len(prompts)) if seeds is None else seeds
            if len(seeds) != len(prompts):
                raise InputError(f"seeds = {list(seeds)} must be one for each prompt")
            latents = self.noise(seeds, height, width)
        elif seeds is not None:
            raise InputError("seeds and latents exclude each other; give one of them")
        ids = self.image_ids(height, width)
        wanted = (len(prompts), len(ids), self.transformer.config.in_channels)
        if latents.shape != wanted:
            raise InputError(f"latents have shape {latents.shape} and must have {wanted}")
        conditioning = self.encode(prompts)
        latents = self.denoise(latents, conditioning, ids, steps, guidance, **changes)
        return self.decode(latents, height, width)


def batches(count: int, size: int, title: str) -> Iterator[list[int]]:
    """Row numbers in batches of one size, so that only one size compiles, with a progress bar.

    The last batch is filled up with the last row.

    Raises:
        InputError: size is below 1.
    """
    if size < 1:
        raise InputError(f"batch = {size} must be at least 1")
    size = min(size, count)
    # Inside another bar, this one disappears when it is finished.
    with progress.bar(total=count, desc=title, leave=None) as bar, xla_flags.told(bar):
        for start in range(0, count, size or 1):
            yield [min(start + index, count - 1) for index in range(size)]
            bar.update(min(size, count - start))


def load(path: str | Path, dtype: DTypeLike | None = None, quantize: str | None = None) -> Pipeline:
    """Opens a pipeline in diffusers' layout, or one of single files (`flux_jax.weights.source`).

    The weights are placed on the first device; see `Pipeline.on` for others.

    Args:
        path: its folder, the transformer's folder or file in it, or its name on the Hugging Face
            hub.
        dtype: dtype of parameters and matrix products; by default float32 on CPU, else bfloat16.
        quantize: "int8" or "fp8" stores the transformer's large kernels in that type, see
            `flux_jax.models.quantize`.

    Raises:
        InputError: a file is missing or damaged, or does not fit the model, or quantize is unknown.
    """
    path = find_model(str(path))
    chosen = dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    sources = {name: open_source(path, name) for name in COMPONENTS}
    modules: dict[str, Any] = {
        name: build(name, source.config, chosen) for name, source in sources.items()
    }
    check_widths({name: module.config for name, module in modules.items()})
    guidance = modules["transformer"].config.guidance_embeds
    root = root_of(path)
    mesh = sharding.make({})
    clip = read_tokenizer(root, "tokenizer", modules["text_encoder"].config)
    t5 = read_tokenizer(root, "tokenizer_2", modules["text_encoder_2"].config)
    return Pipeline(
        **modules,
        params=Weights(sources, chosen, mesh, quantize),
        tokenizer=clip,
        tokenizer_2=t5,
        schedule=Schedule.from_dict(read_schedule(path, guidance)),
        mesh=mesh,
    )
