"""LoRA adapters beside a student's linear layers: which layers get one, what then learns, and whether it does."""

import re

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import WhisperForConditionalGeneration

from trainer.errors import BadInputError
from trainer.student_spec import LoraSpec, WhisperStudentSpec

_ATTENTION = r"(?:self_attn|encoder_attn)\."
PRESETS = {
    "qv": _ATTENTION + "(?:q_proj|v_proj)",
    "qkv": _ATTENTION + "(?:q_proj|k_proj|v_proj)",
    "qkv_fc2": _ATTENTION + "(?:q_proj|k_proj|v_proj)|fc2",
    "all_attention_mlp": _ATTENTION + "(?:q_proj|k_proj|v_proj|out_proj)|fc1|fc2",
}
"""Linear layers within one encoder or decoder layer. The output layer is in none: it is tied to the embeddings."""


def add_adapters(whisper: WhisperForConditionalGeneration, lora: LoraSpec, *, dropout: float) -> tuple[str, ...]:
    """Put an adapter beside every layer that is named, freeze all other weights, and return the layers' names.

    Injected in place, not wrapped in a ``PeftModel``: that one, and transformers' own ``add_adapter``, make the inputs
    of a model with activation checkpointing require gradients, which revives the graph of a frozen encoder.

    Raises:
        BadInputError: The targets match nothing, or something that they should not.
    """
    targets = choose_targets(whisper, lora)
    config = LoraConfig(  # without task_type: for SEQ_2_SEQ_LM, PEFT passes input_ids, which a Whisper does not take
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared whole, but only divided by the rank
        lora_dropout=dropout if lora.dropout is None else lora.dropout,
        target_modules=_pattern(lora),
    )
    inject_adapter_in_model(config, whisper)
    return targets


def choose_targets(whisper: WhisperForConditionalGeneration, lora: LoraSpec) -> tuple[str, ...]:
    """Return the names of the linear layers that get an adapter.

    A name must match as a whole. The suffixes that are PEFT's habit (``q_proj``) would adapt the encoder as well.

    Raises:
        BadInputError: The targets match nothing of a side that should learn, or something that should not.
    """
    modules = {name: module for name, module in whisper.named_modules() if re.fullmatch(_pattern(lora), name)}
    foreign = [name for name, each in modules.items() if ".layers." not in name or not isinstance(each, nn.Linear)]
    in_encoder = [name for name in modules if name.startswith("model.encoder.")]
    whose = f"student.lora.targets {lora.targets!r}"
    if foreign:
        raise BadInputError(
            f"{whose} matches {foreign[0] or 'the whole model'}, which is no linear layer of an encoder or decoder "
            r"layer; name such layers only, as in model\.decoder\.layers\.\d+\.self_attn\.q_proj"
        )
    if in_encoder and not lora.encoder:
        raise BadInputError(
            f"{whose} matches {len(in_encoder)} layers of the encoder too, such as {in_encoder[0]}; "
            r"begin it with model\.decoder\. or set student.lora.encoder: true"
        )
    if len(in_encoder) == len(modules) or (lora.encoder and not in_encoder):
        side = "encoder" if modules and not in_encoder else "decoder"
        raise BadInputError(
            f"{whose} matches no layer of the {side}; a whole name must match, "
            f"such as model.{side}.layers.0.self_attn.q_proj"
        )
    return tuple(modules)


def require_trainable(student: nn.Module, spec: WhisperStudentSpec, targets: tuple[str, ...]) -> None:
    """Check that what learns is exactly what the configuration says, by name.

    Raises:
        RuntimeError: It is not: a mistake of ours, or a PEFT that names or freezes its layers otherwise.
    """
    learning = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    expected = {f"whisper.{target}.lora_{half}.default.weight" for target in targets for half in "AB"}
    for name, _ in student.named_parameters():
        is_encoder = name.startswith("whisper.model.encoder.")
        is_frozen = spec.encoder.frozen if is_encoder else spec.decoder.frozen
        if not is_frozen and ".lora_" not in name and name != "whisper.model.encoder.embed_positions.weight":
            expected.add(name)
    if learning != expected:
        wrong = sorted(learning ^ expected)
        raise RuntimeError(
            f"{len(wrong)} tensors of the student learn but should not, or the reverse, such as {wrong[0]}: "
            "this is a bug in distune, or a version of peft that it does not know"
        )


def require_gradients(student: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Check that every adapter tensor has received a gradient in the steps so far. A GPU synchronisation.

    Two steps must have moved the weights: ``lora_B`` starts at zero, so that the first gradient of ``lora_A`` is zero.

    Raises:
        BadInputError: One has not, and would go on learning nothing.
    """
    for name, parameter in student.named_parameters():
        if ".lora_" in name and parameter.requires_grad:
            moment = optimizer.state.get(parameter, {}).get("exp_avg")  # Adam's, zero as long as all gradients were
            if moment is None or not bool(moment.any()):
                raise BadInputError(
                    f"the adapter tensor {name} has received no gradient, so it would never learn; "
                    "correct student.lora.targets"
                )


def _pattern(lora: LoraSpec) -> str:
    """Return the regular expression that the whole name of a layer must match."""
    if lora.targets is not None:
        return lora.targets
    assert lora.preset is not None
    sides = "(?:encoder|decoder)" if lora.encoder else "decoder"
    return rf"model\.{sides}\.layers\.\d+\.(?:{PRESETS[lora.preset]})"
