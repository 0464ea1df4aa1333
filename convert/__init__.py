"""Commands that convert files, and the file layouts of adapters."""

from flux_jax import moved

moved.announce(
    __name__,
    {
        "bitsandbytes": "flux_jax.weights.quantized.bitsandbytes",
        "changes": "convert.adapters.changes",
        "checkpoint": "flux_jax.weights.checkpoint",
        "errors": "flux_jax.errors",
        "family": "flux_jax.weights.family",
        "gguf_files": "flux_jax.weights.quantized.gguf_files",
        "hub": "flux_jax.weights.hub",
        "layouts": "flux_jax.weights.layouts",
        "lazy": "flux_jax.weights.quantized.lazy",
        "lora_joined": "convert.adapters.joined",
        "lora_kinds": "convert.adapters.kinds",
        "lora_layers": "convert.adapters.layers",
        "lora_parts": "convert.adapters.parts",
        "lora_peft": "convert.adapters.peft",
        "lora_rows": "convert.adapters.rows",
        "lora_stacked": "convert.adapters.stacked",
        "lora_tables": "convert.adapters.names",
        "lora_torch": "convert.adapters.torch_files",
        "mapping": "flux_jax.weights.mapping flux_jax.tree",
        "original": "flux_jax.weights.original",
        "progress": "flux_jax.progress",
        "quantized": "flux_jax.weights.quantized.formats",
        "rules": "flux_jax.weights.rules",
        "sizes": "flux_jax.weights.sizes",
        "source": "flux_jax.weights.source",
        "tables": "flux_jax.weights.tables",
        "tensors": "flux_jax.weights.safetensors_files",
    },
)
