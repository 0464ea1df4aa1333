"""Names of the layers that adapters change; needs no JAX, so that configurations do not either."""

# Queries and keys of the text in dual-stream blocks.
TEXT_QUERY_KEY = ("dual_blocks/attn/add_q_proj", "dual_blocks/attn/add_k_proj")
