"""The quantizable Vision Transformer: one block, four executions (float, to train by, simulated, integer)."""
