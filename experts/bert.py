"""BERT's forward pass without autograd and options: for a short text, a third of transformers' time goes into these.

B texts, T tokens, D width, H heads, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

Weights = tuple[Tensor, Tensor]  # weight and bias


@dataclass(frozen=True)
class Layer:
    """The weights of one layer; those of query, key and value are one matrix, [3D, D]."""

    attention: Weights
    attention_out: Weights
    attention_norm: Weights
    up: Weights
    down: Weights
    norm: Weights


@dataclass(frozen=True)
class Bert:
    """A BERT in single precision that is not trained any more.

    Attributes:
        words: [vocabulary, D], embeddings of tokens.
        positions: [longest T, D], those of positions and of the first segment.
        norm: of these.
        layers: L of them.
        heads: H.
        epsilon: of the norms.
    """

    words: Tensor
    positions: Tensor
    norm: Weights
    layers: list[Layer]
    heads: int
    epsilon: float

    @torch.inference_mode()
    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The last layer's states [B, T, D] from token ids [B, T] and the mask of those that are no padding [B, T]."""
        width = (self.words.shape[1],)
        seen = None if bool(mask.all()) else mask.bool()[:, None, None, :]
        x = self.words[ids] + self.positions[: ids.shape[1]]
        x = layer_norm(x, width, *self.norm, self.epsilon)
        for layer in self.layers:
            query, key, value = linear(x, *layer.attention).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            attended = scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2).flatten(2)
            x = layer_norm(x + linear(attended, *layer.attention_out), width, *layer.attention_norm, self.epsilon)
            inner = gelu(linear(x, *layer.up))
            x = layer_norm(x + linear(inner, *layer.down), width, *layer.norm, self.epsilon)
        return x


def bert_of(network: Any) -> Bert | None:
    """The weights of a BERT of transformers; None if it is another network, or a BERT of an unusual kind."""
    config, stored = network.config, network.state_dict()
    usual = config.model_type == "bert" and config.hidden_act == "gelu" and not config.is_decoder
    if not usual or getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None

    def weights(*names: str) -> Weights:
        weight, bias = (torch.cat([stored[f"{name}.{kind}"] for name in names]) for kind in ("weight", "bias"))
        return weight, bias

    layers = [
        Layer(
            attention=weights(*(f"{at}.attention.self.{name}" for name in ("query", "key", "value"))),
            attention_out=weights(f"{at}.attention.output.dense"),
            attention_norm=weights(f"{at}.attention.output.LayerNorm"),
            up=weights(f"{at}.intermediate.dense"),
            down=weights(f"{at}.output.dense"),
            norm=weights(f"{at}.output.LayerNorm"),
        )
        for at in (f"encoder.layer.{number}" for number in range(config.num_hidden_layers))
    ]
    return Bert(
        words=stored["embeddings.word_embeddings.weight"],
        positions=stored["embeddings.position_embeddings.weight"]
        + stored["embeddings.token_type_embeddings.weight"][0],
        norm=weights("embeddings.LayerNorm"),
        layers=layers,
        heads=config.num_attention_heads,
        epsilon=config.layer_norm_eps,
    )
