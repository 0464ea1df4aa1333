"""Check a request for pictures, before JAX is imported."""

from collections.abc import Sequence

from flux_jax.errors import InputError
from flux_jax.settings import SamplingOptions, check_sampling, check_seeds


def check_request(prompts: Sequence[str], seeds: Sequence[int], options: SamplingOptions) -> None:
    """Check that there is at least one prompt and seed, and the sampling options.

    Args:
        prompts: text prompts.
        seeds: seeds of the noise.
        options: sampling options.

    Raises:
        InputError: the prompt or the seed is missing, or a seed or setting cannot be used.
    """
    if not prompts or not seeds:
        raise InputError(
            f"--{'seed' if prompts else 'prompt'} is missing: give at least one, "
            '--prompt "a photo of a cat" --seed 0'
        )
    check_seeds(seeds)
    check_sampling(options.steps, options.guidance)
    if options.batch < 1:
        raise InputError(f"batch = {options.batch} must be at least 1")
