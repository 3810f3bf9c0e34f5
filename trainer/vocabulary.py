"""Transcripts as token ids and back, with the prompt that a Whisper decodes after."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from trainer.errors import BadInputError
from trainer.pretrained import Pretrained


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer together with the ids that its model gives a meaning to."""

    tokenizer: PreTrainedTokenizerBase
    prompt: tuple[int, ...]
    """What every decoder input starts with: start token, then language and task if multilingual, then no-timestamps."""
    end: int
    """End of transcript; it also pads, as in every Whisper."""
    max_positions: int
    """Longest decoder input, the prompt included."""
    suppressed: tuple[int, ...]
    """Ids that are never decoded, by the model's own generation settings."""
    suppressed_first: tuple[int, ...]
    """Ids that are not decoded as the first one."""

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the ids of each text, without prompt and end.

        Each text gets a leading space: Whisper's words carry theirs, the first word of a transcript too.
        """
        rows = self.tokenizer([" " + text for text in texts], add_special_tokens=False)["input_ids"]
        return [tuple(row) for row in rows]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of ids; special tokens vanish."""
        return [
            text.strip() for text in self.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)
        ]


def build_vocabulary(pretrained: Pretrained, language: str | None) -> Vocabulary:
    """Take the ids from the model's configuration.

    Raises:
        BadInputError: A multilingual model without a language, a language that the model does not know, or a
            language for a model that takes none.
    """
    config = pretrained.config
    generation: Any = pretrained.model.generation_config  # Whisper's own settings are attributes it does not declare
    start = generation.decoder_start_token_id
    prompt = [config.decoder_start_token_id if start is None else start]
    languages: dict[str, int] = getattr(generation, "lang_to_id", None) or {}
    is_multilingual = bool(getattr(generation, "is_multilingual", bool(languages)))
    if is_multilingual and language is None:
        raise BadInputError(f"the model {pretrained.name} is multilingual; set teacher.language, for LibriSpeech to en")
    if language is not None and not is_multilingual:
        raise BadInputError(f"the model {pretrained.name} takes no language; remove teacher.language")
    if language is not None:
        token = f"<|{language.lower()}|>"
        if token not in languages:
            raise BadInputError(
                f"the model {pretrained.name} knows no language {language!r}; set teacher.language to a code such as en"
            )
        prompt += [languages[token], generation.task_to_id["transcribe"]]
    no_timestamps = getattr(generation, "no_timestamps_token_id", None)
    if no_timestamps is not None:
        prompt.append(no_timestamps)
    end: Any = generation.eos_token_id if generation.eos_token_id is not None else config.eos_token_id
    return Vocabulary(
        tokenizer=pretrained.tokenizer,
        prompt=tuple(prompt),
        end=end[0] if isinstance(end, list) else end,
        max_positions=config.max_target_positions,
        suppressed=tuple(generation.suppress_tokens or ()),
        suppressed_first=tuple(generation.begin_suppress_tokens or ()),
    )


def require_same_vocabulary(teacher: Pretrained, student: Pretrained) -> None:
    """Refuse a student whose tokens mean something else than the teacher's.

    The maps are compared, not their sizes: an English-only Whisper and a multilingual one differ by one in size and
    agree on 270 of 50,256 ids, and a KL between them would train the student on noise.

    Raises:
        BadInputError: They differ.
    """
    teacher_ids, student_ids = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    differing = sum(student_ids.get(token) != index for token, index in teacher_ids.items())
    differing += sum(token not in teacher_ids for token in student_ids)
    if differing or teacher.config.vocab_size != student.config.vocab_size:
        raise BadInputError(
            f"the student {student.name} ({student.config.vocab_size} ids) and the teacher {teacher.name} "
            f"({teacher.config.vocab_size} ids) differ in {differing} tokens, so the teacher's probabilities mean "
            "nothing to it; set student.model to a model with the teacher's tokenizer"
        )
