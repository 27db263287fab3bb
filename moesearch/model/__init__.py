"""The sparse-MoE language model, R trials wide."""
