"""Qwen3-VL on megatron-core modules: vision tower, embedding, decoder with DeepStack, output layer.

A pipeline stage holds its share: the first one the tower and the embedding, the last one the output layer. Logits exist
only for positions that carry loss; for the others, prompts and observations, they would be thrown away.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from nemo_axpo.models.qwen3_vl.block import DeepStackBlock
from nemo_axpo.models.qwen3_vl.config import head_dim, rope_settings
from nemo_axpo.models.qwen3_vl.hf_model import is_tied
from nemo_axpo.models.qwen3_vl.inputs import PackedInputs
from nemo_axpo.models.qwen3_vl.layer_specs import block_spec
from nemo_axpo.models.qwen3_vl.mrope import InterleavedRope
from nemo_axpo.models.qwen3_vl.vision import VisionTower
from nemo_axpo.models.vocab_parallel import OutputStates


class Qwen3VLModel(LanguageModule):
    """One pipeline stage's share of the model."""

    def __init__(self, config: TransformerConfig, hf_config: Any, *, pre_process: bool, post_process: bool) -> None:
        """``pre_process`` / ``post_process``: whether this is the first / last stage."""
        super().__init__(config=config)
        text = hf_config.text_config
        theta, sections = rope_settings(text)
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process, self.post_process = pre_process, post_process
        self.share_embeddings_and_output_weights = is_tied(hf_config)
        self.rotary = InterleavedRope(head_dim=head_dim(text), theta=theta, sections=sections)
        if pre_process:
            self.embedding = LanguageModelEmbedding(
                config, text.vocab_size, 0, position_embedding_type="none", scatter_to_sequence_parallel=False
            )
            device = self.embedding.word_embeddings.weight.device
            tower = VisionTower.on_meta(
                hf_config.vision_config, recomputes_blocks=config.recompute_granularity == "full"
            )
            self.visual = tower.to(config.params_dtype).to_empty(device=device)  # weights are loaded later
        self.decoder = DeepStackBlock(config, block_spec(config), pre_process=pre_process, post_process=post_process)
        if post_process:
            self.output_layer = self._output_layer(text.vocab_size)
        if pre_process or post_process:
            self.setup_embeddings_and_output_layer()

    def set_input_tensor(self, input_tensor: list[Tensor] | Tensor) -> None:
        """Called by megatron's schedule: hidden states of the previous stage."""
        self.decoder.set_input_tensor(input_tensor[0] if isinstance(input_tensor, list) else input_tensor)

    def forward(self, inputs: PackedInputs) -> Tensor | OutputStates:
        """Last stage: what logits of the loss positions are made of; other stages: hidden states ``[T, 1, H]``."""
        hidden, deepstack = self._embed(inputs) if self.pre_process else (None, [])
        rotary = self.rotary(inputs.positions_3T, dtype=self.config.params_dtype)
        hidden = self.decoder(hidden, rows=inputs.rows, rotary=rotary, deepstack=deepstack)
        return self._output(hidden, inputs.predictor_L) if self.post_process else hidden

    def _embed(self, inputs: PackedInputs) -> tuple[Tensor, list[Tensor]]:
        """Token embeddings with images in their places, and the DeepStack levels, each ``[T, 1, H]`` and dense.

        Dense levels go through the same scatter as the embeddings under sequence parallelism, whose backward gathers:
        so every rank gets the whole gradient of the vision tower.
        """
        embedded = self.embedding(inputs.token_ids_T.unsqueeze(0), None)
        levels: list[Tensor] = []
        if inputs.images:
            features, deepstack = self.visual(inputs.images)
            levels = [_place(torch.zeros_like(embedded), level, inputs=inputs) for level in deepstack]
            embedded = _place(embedded, features, inputs=inputs)
        if self.config.sequence_parallel:
            embedded = tensor_parallel.scatter_to_sequence_parallel_region(embedded)
            levels = [tensor_parallel.scatter_to_sequence_parallel_region(level) for level in levels]
        return embedded, levels

    def _output(self, hidden: Tensor, predictor_L: Tensor) -> OutputStates:
        """Loss positions and the output projection, which is not applied here: its result is too large to keep.

        A rank's part of the vocabulary gives a part of the gradient of every hidden state; both ways of coming by the
        whole sequence sum it over the ranks.
        """
        if self.config.sequence_parallel:
            hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden)
        else:
            hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)
        is_tied = self.share_embeddings_and_output_weights
        weight_VH = self.shared_embedding_or_output_weight() if is_tied else self.output_layer.weight
        return OutputStates(hidden.index_select(0, predictor_L).squeeze(1), weight_VH)

    def _output_layer(self, vocab_size: int) -> tensor_parallel.ColumnParallelLinear:
        """Holds the output projection under megatron's names; :meth:`forward` hands out its weight."""
        return tensor_parallel.ColumnParallelLinear(
            self.config.hidden_size,
            vocab_size,
            config=self.config,
            init_method=self.config.init_method,
            bias=False,
            gather_output=False,
            skip_weight_param_allocation=self.pre_process and self.share_embeddings_and_output_weights,
        )


def _place(base: Tensor, features: Tensor, *, inputs: PackedInputs) -> Tensor:
    """``base`` ``[T, 1, H]`` with its image tokens replaced by their features."""
    chosen = features.index_select(0, inputs.image_feature_P).to(base.dtype).unsqueeze(1)
    return base.index_copy(0, inputs.image_token_P, chosen)


def build_stage(hf_config: Any, *, config: TransformerConfig, device: torch.device) -> Qwen3VLModel:
    """This rank's stage on ``device``, with weights still to be loaded."""
    model = Qwen3VLModel(
        config,
        hf_config,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    return model.to(device)
