"""The quantizable Vision Transformer: one block definition, three executions (float, simulated, integer)."""
