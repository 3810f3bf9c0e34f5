"""A Whisper as it lies on disk or on the hub: weights, tokenizer, feature extractor. Checked when it is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from trainer.errors import BadInputError
from trainer.features import LogMel

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A loaded Whisper. Its weights stay on the CPU in the precision they are stored in, and are never changed."""

    name: str
    model: WhisperForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    log_mel: LogMel

    @property
    def config(self) -> WhisperConfig:
        """The model's shape."""
        return self.model.config


def load_pretrained(name: str) -> Pretrained:
    """Load a Whisper from a local directory or the hub, as ``from_pretrained`` takes it.

    Raises:
        BadInputError: The directory is not there, is no Whisper, or its files are incomplete or damaged.
    """
    folder = Path(name)
    is_local = folder.is_dir()
    if is_local:
        _check_folder(folder)
    elif folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise BadInputError(f"the model directory {name} does not exist; correct teacher.model or student.model")
    transformers.utils.logging.disable_progress_bar()  # it would draw over the caller's own
    try:
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            name, output_loading_info=True, local_files_only=is_local, dtype="auto"
        )
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=is_local)
        extractor = WhisperFeatureExtractor.from_pretrained(name, local_files_only=is_local)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as exc:
        # What from_pretrained raises on a damaged or foreign file depends on the file; all of it is bad input.
        reason = _first_line(exc)
        if is_local:
            raise BadInputError(f"the model {name} cannot be loaded ({reason}); copy or download it again") from exc
        raise BadInputError(
            f"the model {name} is no directory here and the hub does not give it ({reason}); "
            "correct teacher.model or student.model, or use a local directory"
        ) from exc
    model, loading = loaded
    lacking = sorted(key for key in loading["missing_keys"] if key != "proj_out.weight")
    if lacking:
        raise BadInputError(
            f"the weights of the model {name} lack {len(lacking)} tensors, {lacking[0]} among them; "
            "copy or download it again"
        )
    pretrained = Pretrained(
        name=name, model=model.eval().requires_grad_(False), tokenizer=tokenizer, log_mel=LogMel(extractor=extractor)
    )
    _check_window(pretrained)
    return pretrained


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BadInputError(f"the directory {folder} has no config.json; point to a model saved by save_pretrained")
    if not any((folder / weights).is_file() for weights in WEIGHTS):
        raise BadInputError(f"the model directory {folder} has no weights ({WEIGHTS[0]}); copy or download it again")
    try:
        config = WhisperConfig.get_config_dict(folder)[0]
    except (OSError, ValueError) as exc:
        raise BadInputError(f"the file {folder / 'config.json'} cannot be read; copy or download it again") from exc
    if config.get("model_type") != "whisper":
        raise BadInputError(
            f"the model in {folder} is a {config.get('model_type', 'model of unknown type')}, not a Whisper; "
            "point to a WhisperForConditionalGeneration"
        )


def _check_window(pretrained: Pretrained) -> None:
    """Refuse a feature extractor that makes another number of frames than the encoder takes."""
    frames = int(pretrained.log_mel.extractor.nb_max_frames)
    expected = 2 * pretrained.config.max_source_positions
    if frames != expected or pretrained.log_mel.extractor.feature_size != pretrained.config.num_mel_bins:
        raise BadInputError(
            f"the feature extractor of {pretrained.name} makes {pretrained.log_mel.extractor.feature_size} by {frames} "
            f"features but its encoder takes {pretrained.config.num_mel_bins} by {expected}; "
            "correct chunk_length and feature_size in preprocessor_config.json"
        )


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(exc).__name__
