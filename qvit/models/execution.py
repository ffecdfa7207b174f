"""What an execution is: the steps of a ViT, computed in float, on the grids of the integers (to train by), in simulated
integers, or in integers.

Between steps travel tensors of values or codes with their scales (`Quantized`); only the execution knows which.
Every step that ends a row writes it as the step `to` wants to read it: transformed and quantized.
"""

from typing import Any, Protocol

from torch import Tensor


class Execution(Protocol):
    """The steps of a model; parameters come from the containers in dense.py and vit.py."""

    def tokens(self, images: Tensor, vit: Any) -> Tensor:
        """Normalised images [B, C, H, W] to prefix and patch tokens with position embeddings: [B, T, D] in
        the model's `token_dtype`.
        """
        ...

    def norm(self, x: Tensor, norm: Any, to: Any) -> Any:
        """LayerNorm of the residual stream [B, T, D], for the Linear `to`."""
        ...

    def qkv(self, h: Any, attn: Any) -> tuple[Any, Any, Any]:
        """Q, K, V of every head, [B, H, T, d], after QK-norm where there is one."""
        ...

    def attention(self, q: Any, k: Any, v: Any, attn: Any) -> Any:
        """Softmax attention, [B, T, H*d], for `attn.proj`."""
        ...

    def residual(self, x: Tensor, h: Any, dense: Any) -> Tensor:
        """x + Linear(h), in the dtype of x."""
        ...

    def gelu(self, h: Any, mlp: Any) -> Any:
        """GELU(fc1(h)), for `mlp.fc2`."""
        ...

    def head(self, x: Tensor, dense: Any) -> Tensor:
        """Linear of pooled float features [B, D]: logits fp32 [B, N]."""
        ...

    def logits(self, h: Any, dense: Any) -> Tensor:
        """The same of what `norm` made of them."""
        ...
