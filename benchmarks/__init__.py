"""Benchmarks, experiments and the page of results; not part of the product."""

from flux_jax import moved

moved.announce(
    __name__,
    {
        "attention_sizes": "benchmarks.speed.attention_sizes",
        "compositions": "benchmarks.experiments.compositions",
        "concepts_at_once": "benchmarks.experiments.concepts_at_once",
        "flops": "erase.methods.planning.flops",
        "flux": "benchmarks.speed.flux",
        "flux_ours": "benchmarks.speed.flux_ours",
        "flux_torch": "benchmarks.speed.flux_torch",
        "methods": "benchmarks.experiments.methods_full_size",
        "parity.__main__": "benchmarks.parity.parity",
        "parity_case": "benchmarks.parity.case",
        "parity_ours": "benchmarks.parity.ours",
        "parity_torch": "benchmarks.parity.diffusers",
        "relation_tokens": "benchmarks.experiments.relation_tokens",
        "relearning": "benchmarks.experiments.relearning",
        "tpu_fit": "benchmarks.speed.tpu_fit",
        "two_devices": "benchmarks.speed.two_devices",
        "works": "benchmarks.speed.cases",
    },
)
