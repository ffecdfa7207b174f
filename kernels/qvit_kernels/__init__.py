"""Integer operations of quantized Vision Transformers. See `ops` for the operations, `reference`
for the arithmetic.

Importing the package loads nothing; `qvit_kernels.ops` loads torch and registers the ops. Neither
loads Triton.
"""
