"""An execution that computes in float and keeps what attention saw, block by block.

The values come from the project's own block, so there is no hook that could silently see nothing, and everything is
differentiable. Prefix tokens (class, distillation, registers) are dropped by their number.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from qvit.models.config import ViTConfig
from qvit.models.floating import Float
from qvit.models.vit import Attention


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """What one block's attention computed on, and its output.

    Attributes:
        q, k: [B, H, T, d], after QK-norm where there is one.
        output: softmax(q k^T) v of every head, [B, H, T, d].
        prefix: How many of the T tokens come before the patches.
        class_token: Whether the first of them is the class token; registers alone are read by nobody.
        softmax_scale: Factor of q k^T before the softmax.
    """

    q: Tensor
    k: Tensor
    output: Tensor
    prefix: int
    class_token: bool
    softmax_scale: float

    def scores(self) -> Tensor:
        """q k^T of patch queries and patch keys, before scale and softmax: fp32 [B, H, P, P]."""
        q, k = self.q[:, :, self.prefix :].float(), self.k[:, :, self.prefix :].float()
        return q @ k.transpose(-1, -2)

    def features(self) -> Tensor:
        """The attention output at every patch, averaged over heads: fp32 [B, P, d]."""
        return self.output[:, :, self.prefix :].float().mean(1)

    def maps(self) -> Tensor:
        """Attention of all tokens to all tokens, after the softmax: fp32 [B, H, T, T]."""
        scores = self.q.float() @ self.k.float().transpose(-1, -2)
        return (scores * self.softmax_scale).softmax(-1)

    def attention_to_patches(self) -> Tensor:
        """How much the class token attends to every patch: fp32 [B, H, P].

        Without a class token: how much the patches do on average, as a model that pools patches reads them.
        """
        return attend_to_patches(self.q, self.k, self.softmax_scale, self.prefix, self.class_token)


def attend_to_patches(
    q: Tensor, k: Tensor, softmax_scale: float, prefix: int, class_token: bool
) -> Tensor:
    """BlockRecord.attention_to_patches, of q and k [B, H, T, d]."""
    queries = q[:, :, :1] if class_token else q[:, :, prefix:]
    scores = queries.float() @ k.float().transpose(-1, -2)
    return (scores * softmax_scale).softmax(-1)[..., prefix:].mean(2)


class Recording(Float):
    """The float execution, with a record of every block in `records`, in order."""

    def __init__(self, config: ViTConfig) -> None:
        self.prefix, self.class_token = config.num_prefix_tokens, config.class_token
        self.records: list[BlockRecord] = []

    def attention(self, q: Tensor, k: Tensor, v: Tensor, attn: Attention) -> Tensor:
        """See Execution."""
        output = F.scaled_dot_product_attention(q, k, v, scale=attn.softmax_scale)
        self.records.append(
            BlockRecord(q, k, output, self.prefix, self.class_token, attn.softmax_scale)
        )
        return output.transpose(1, 2).flatten(-2)
