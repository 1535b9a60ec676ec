r"""A residual perceptron for data without spatial structure: points, tables, small vectors.

Each block normalises its input, scales and shifts every feature by the context h (noise level and label; FiLM, Perez et
al. 2018, arXiv:1709.07871), and adds the output of a two-layer perceptron,

.. math:: (a, s) = W_h h + b_h, \qquad
          u \leftarrow u + W_2 \, \mathrm{SiLU}(W_1 ((1 + a) \odot \mathrm{norm}(u) + s) + b_1) + b_2,

whose second layer is initialised to zero.
"""

from __future__ import annotations

__all__ = ["MLP", "PerceptronBlock"]

import math

from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_counts
from .conditions import Conditions, CrossAttention, ImageCondition, TokenCondition, Tokens, features_of, with_image
from .context import Context
from .embedding import LevelEmbedding, Positional
from .layers import linear, zero_init
from .network import Network


class PerceptronBlock(nn.Module):
    """The block of the module: `u` with shape (B, width), `context` with shape (1 or B, F) -> (B, width)."""

    def __init__(self, width: int, context: int, dropout: float, tokens: bool = False) -> None:
        super().__init__()
        self.cross = CrossAttention(width, width) if tokens else None
        self.film = linear(context, 2 * width, parts=2)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.inner = linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.outer = zero_init(linear(width, width))

    def forward(self, u: Tensor, context: Tensor, tokens: Tokens | None = None) -> Tensor:
        if self.cross is not None and tokens is not None:
            u = u + self.cross(self.norm(u)[:, None], tokens)[:, 0]
        scale, shift = self.film(context).chunk(2, dim=1)
        return u + self.outer(self.dropout(F.silu(self.inner((1 + scale) * self.norm(u) + shift))))


class MLP(Network):
    """A residual perceptron, called as `net(x, noise_level, label=...)`.

    Args:
        features: D, the number of entries of one sample; data of any shape (B, *) with D entries is flattened.
        width: features of the hidden layers and of the context.
        depth: the number of residual blocks.
        embedding: the embedding of the noise level; `Positional(width)` by default.
        dropout: the dropout probability of hidden activations in training.
        classes: the number of classes, or None for a network without labels.
        conditions: the sizes of further conditions (:mod:`sde.networks.conditions`); none by default. An `image` is
            flattened like the data, and the whole sample attends to the tokens.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(
        self,
        features: int,
        width: int = 256,
        depth: int = 4,
        embedding: LevelEmbedding | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        super().__init__()
        check_counts(features=features, width=width, depth=depth)
        self.features = features
        self.conditions = conditions = conditions or Conditions()
        embedding = Positional(width) if embedding is None else embedding
        self.context = Context(embedding, width, classes, vector=conditions.embedding)
        self.tokens = None if conditions.tokens is None else TokenCondition(conditions.tokens, width)
        self.image = None if conditions.image is None else ImageCondition(conditions.image)
        self.inlet = linear(features + (conditions.image or 0), width)
        attends = self.tokens is not None
        self.blocks = nn.ModuleList([PerceptronBlock(width, width, dropout, attends) for _ in range(depth)])
        self.outlet = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), zero_init(linear(width, features)))

    def forward(
        self,
        x: Tensor,
        noise_level: Tensor,
        *,
        label: Tensor | None = None,
        embedding: Tensor | None = None,
        tokens: Tensor | None = None,
        tokens_mask: Tensor | None = None,
        image: Tensor | None = None,
    ) -> Tensor:
        """The output of the network, with the shape of `x`.

        Args:
            x: noisy data, with shape (B, *) and D entries per sample, in the precision of the network.
            noise_level: the noise level, with shape () or (B,), in any precision.
            label: the class, int64 with shape () or (B,), for a network with `classes`; `classes` itself means no
                label.
            embedding, tokens, tokens_mask, image: the further conditions; those left out are not known.

        Raises:
            ValueError: if `x`, `noise_level` or `label` does not fit the network, or a label is missing or superfluous.
            TypeError: if the label is not int64.
        """
        if x.ndim == 0 or math.prod(x.shape[1:]) != self.features:
            raise ValueError(
                f"expected data of shape (B, *) with {self.features} entries per sample, "
                f"got {tuple(x.shape)}: build the network with features= of the data"
            )
        context = self.context(x.shape[0], noise_level, label, embedding=embedding)
        keys = features_of(self.tokens, len(x), tokens, tokens_mask)
        flat = None if image is None else image.flatten(1)
        u = self.inlet(with_image(self.image, x.reshape(x.shape[0], self.features), flat))
        for block in self.blocks:
            u = block(u, context, tokens=keys)
        return self.outlet(u).reshape(x.shape)
