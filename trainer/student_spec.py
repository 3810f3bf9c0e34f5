"""The configuration of a student: which layers it keeps, which of them learn, and its adapters."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from trainer.spec import Count, Positive, Spec


class LayersSpec(Spec):
    """Which layers of the model a student starts from, and what becomes of them."""

    keep: Literal["all"] | Count | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """``all``, how many (taken at maximally spaced depths), or the layers' indices."""
    init: Literal["copy", "random"] = "copy"
    """``random``: the kept layers, and the front end before them, forget their weights."""
    frozen: bool = False

    @model_validator(mode="after")
    def _random_layers_can_learn(self) -> "LayersSpec":
        if self.init == "random" and self.frozen:
            raise ValueError("layers with init: random would never learn while frozen; write frozen: false")
        return self


class EncoderSpec(LayersSpec):
    """As ``LayersSpec``, but frozen unless said otherwise: a partial ``encoder`` section must not thaw the encoder."""

    frozen: bool = True


class LoraSpec(Spec):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) beside linear layers, whose own weights stay as they are."""

    preset: Literal["qv", "qkv", "qkv_fc2", "all_attention_mlp"] | None = "qv"
    """Which linear layers of each decoder layer: projections of its self- and cross-attention, and of its MLP."""
    targets: str | None = None
    """In place of a preset: a regular expression for whole module names, such as ``model.decoder.layers.0.fc1``."""
    rank: Count = 8
    alpha: Positive = 16.0
    """An adapter's output is scaled by ``alpha / rank``."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """On an adapter's input; ``student.dropout`` when absent."""
    encoder: bool = False
    """Adapters in the encoder too: it then learns, though its own weights are frozen, and runs with a graph."""

    @model_validator(mode="before")
    @classmethod
    def _targets_replace_the_default_preset(cls, raw: object) -> object:
        if isinstance(raw, Mapping) and raw.get("targets") is not None:
            return {"preset": None, **raw}
        return raw

    @field_validator("targets")
    @classmethod
    def _targets_are_a_regular_expression(cls, targets: str | None) -> str | None:
        try:
            re.compile(targets or "")
        except re.error as exc:
            raise ValueError(f"is no regular expression: {exc}; correct it, or give a preset") from None
        return targets

    @model_validator(mode="after")
    def _one_choice_of_layers(self) -> "LoraSpec":
        if (self.preset is None) == (self.targets is None):
            raise ValueError("student.lora takes either preset or targets; give one of them")
        return self


class WhisperStudentSpec(Spec):
    """A Whisper made from another one by keeping some of its layers."""

    kind: Literal["whisper"] = "whisper"
    model: str | None = None
    """Where the kept layers come from: a local directory or hub name; the teacher when absent."""
    encoder: EncoderSpec = EncoderSpec()
    decoder: LayersSpec = LayersSpec()
    lora: LoraSpec | None = None
    """Adapters in the decoder, whose own weights are then frozen; without them the decoder learns as a whole."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Of every layer that learns or holds an adapter, and of the adapters unless they have their own."""

    @model_validator(mode="before")
    @classmethod
    def _adapters_freeze_the_decoder(cls, raw: object) -> object:
        """With adapters, a decoder section that does not say ``frozen`` means true, and the resolved one says so."""
        if not isinstance(raw, Mapping) or raw.get("lora") is None:
            return raw
        decoder = raw.get("decoder", {})
        if isinstance(decoder, LayersSpec):
            decoder = decoder.model_dump(exclude_unset=True)
        if not isinstance(decoder, Mapping):
            return raw
        if decoder.get("init") == "random":
            raise ValueError("student.lora keeps the decoder's own weights, so student.decoder.init must be copy")
        return {**raw, "decoder": {"frozen": True, **decoder}}

    @model_validator(mode="after")
    def _adapters_have_frozen_weights_beside_them(self) -> "WhisperStudentSpec":
        if self.lora is not None and not self.decoder.frozen:
            raise ValueError(
                "student.lora trains adapters in place of the decoder's own weights; remove student.decoder.frozen, "
                "or student.lora to train the whole decoder"
            )
        if self.lora is not None and self.lora.encoder and not self.encoder.frozen:
            raise ValueError(
                "student.lora.encoder trains adapters in place of the encoder's own weights; "
                "remove it, or student.encoder.frozen: false"
            )
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> "WhisperStudentSpec":
        if self.encoder.frozen and self.decoder.frozen and self.lora is None:
            raise ValueError("student.encoder and student.decoder are both frozen, so nothing would learn; free one")
        return self
