"""Names of the layers that adapters change; needs no JAX, so that configurations do not either."""

# Queries and keys of the text in dual-stream blocks.
TEXT_QUERY_KEY = ("dual_blocks/attn/add_q_proj", "dual_blocks/attn/add_k_proj")
# What messages call the blocks of a target, by how its path begins, and FLUX.1's number of them.
BLOCKS = {"dual_blocks": "double block", "single_blocks": "single block"}
MOST_BLOCKS = {"dual_blocks": 19, "single_blocks": 38}
