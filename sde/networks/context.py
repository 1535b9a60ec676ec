r"""The context: the vector h through which the blocks of a network are conditioned on noise level, label and embedding.

With e(c) the embedding of the noise level c, T_y the row of a table for the label y, and a an augmentation vector,

.. math:: h = \mathrm{SiLU}(W_2 \, \mathrm{SiLU}(W_1 (e(c) + A a) + b_1) + b_2 + T_y),

or with other activations. The features of an `embedding` (:mod:`sde.networks.conditions`) are added to T_y.

This is the context of Ho et al. (2020, arXiv:2006.11239), with the label added as by Dhariwal and Nichol (2021,
arXiv:2105.05233) and the augmentation vector as by Karras et al. (2022, arXiv:2206.00364, appendix F.2). Some networks
of Karras et al. also add the label there: e(c) + T_y + A a.
"""

from __future__ import annotations

__all__ = ["Context"]

import torch
from torch import Tensor, nn

from .checks import check_per_sample
from .conditions import VectorCondition
from .embedding import LevelEmbedding
from .layers import linear


class Context(nn.Module):
    """The module that computes h, once per call of the network.

    Args:
        embedding: e, the embedding of the noise level.
        features: F, the length of h.
        classes: the number of classes, or None for a network without labels.
        null_class: whether the table T has an additional row, number `classes`, for "no label".
        label_first: whether the row of the label is added to e(c), before the two layers.
        augment: the length of a, 0 for a network without augmentation vectors.
        activation: the activation of h, which the blocks of a network take; SiLU by default.
        inner_activation: the activation between the two layers; `activation` by default.
        vector: the length of an `embedding`, or None for a network without one.

    Raises:
        ValueError: if `classes` is below 1 or `augment` is below 0.
    """

    def __init__(
        self,
        embedding: LevelEmbedding,
        features: int,
        classes: int | None = None,
        null_class: bool = True,
        label_first: bool = False,
        augment: int = 0,
        activation: nn.Module | None = None,
        inner_activation: nn.Module | None = None,
        vector: int | None = None,
    ) -> None:
        super().__init__()
        if classes is not None and classes < 1:
            raise ValueError(f"expected a positive number or None for no labels, got classes={classes}")
        if augment < 0:
            raise ValueError(f"expected the length of the augmentation vectors or 0 for none, got augment={augment}")
        self.classes, self.null_class, self.label_first = classes, null_class, label_first
        self.embedding = embedding
        self.inner = linear(embedding.dim, features)
        self.outer = linear(features, features)
        length = embedding.dim if label_first else features
        self.table = None if classes is None else nn.Embedding(classes + null_class, length)
        self.augment = linear(augment, embedding.dim, bias=False) if augment else None
        self.activation = nn.SiLU() if activation is None else activation
        self.inner_activation = self.activation if inner_activation is None else inner_activation
        self.vector = None if vector is None else VectorCondition(vector, length, self.activation)

    def forward(
        self,
        batch: int,
        noise_level: Tensor,
        label: Tensor | None = None,
        augment: Tensor | None = None,
        embedding: Tensor | None = None,
    ) -> Tensor:
        """h for `batch` samples, with shape (B, F), or (1, F) if noise level and condition are scalars.

        Args:
            batch: B, the number of samples.
            noise_level: c, with shape () or (B,), in any precision.
            label: y, int64 with shape () or (B,), in 0 ... classes - 1; `classes` itself means no label.
            augment: a, with shape (B, augment); zeros by default.
            embedding: with shape (B, vector), NaN where it is not known; by default it is not.

        Raises:
            ValueError: if a shape does not fit, or if a label or vector is missing, superfluous, or out of range. The
                table look-up checks the range; on a CUDA device it fails with a device-side assertion instead.
            TypeError: if the label is not int64.
        """
        check_per_sample("noise_level", noise_level, batch)
        e = self.embedding(noise_level.reshape(-1)).to(self.inner.weight.dtype)
        rows = self._rows(batch, label)
        if self.vector is not None:
            rows = rows + self.vector(batch, embedding)
        elif embedding is not None:
            raise ValueError("expected no embedding for this network: build it with conditions=Conditions(embedding=E)")
        if self.label_first:
            e = e + rows
        if augment is not None:
            e = e + self._augmentation(batch, augment)
        h = self.outer(self.inner_activation(self.inner(e)))
        return self.activation(h if self.label_first else h + rows)

    def _rows(self, batch: int, label: Tensor | None) -> Tensor | float:
        if self.table is None:
            if label is not None:
                raise ValueError("expected no label for a network without classes: build it with classes=")
            return 0.0
        assert self.classes is not None
        valid = f"0 ... {self.classes - 1}" + (f", or {self.classes} for no label" if self.null_class else "")
        if label is None:
            raise ValueError(f"expected label=, int64 with shape () or (B,), in {valid}, for a network with classes")
        if label.dtype != torch.int64:
            raise TypeError(f"expected an int64 label, got {label.dtype}: convert it with label.long()")
        check_per_sample("label", label, batch)
        try:
            return self.table(label.reshape(-1))
        except IndexError as error:  # a separate check would copy the labels from the device at every call
            raise ValueError(f"expected every label in {valid}, got one outside") from error

    def _augmentation(self, batch: int, augment: Tensor) -> Tensor:
        if self.augment is None:
            raise ValueError("expected no augmentation vectors for this network: build it with augment=")
        shape = (batch, self.augment.in_features)
        if augment.shape != shape:
            raise ValueError(f"expected augment with shape {shape}, one vector per sample, got {tuple(augment.shape)}")
        return self.augment(augment)
