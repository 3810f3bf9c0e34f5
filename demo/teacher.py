"""Train the demo's teacher: ``python -m demo.teacher --corpus DIR --out demo/teacher``.

Sequence-to-sequence cross-entropy alone rests long on a plateau at this size. Two throw-away linear heads that name the
phone and the word of every encoder frame (eSpeak says when each is spoken) lead the encoder off it.
"""

import argparse
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jiwer
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from demo.spoken import Utterance, frame_labels, load_features, read_split
from demo.tiny_whisper import MAX_TOKENS, make_feature_extractor, make_model, make_tokenizer

_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the teacher is trained."""

    steps: int = 3000
    batch_size: int = 16
    lr: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    frame_weight: float = 1.0
    """Weight of the two frame-wise cross-entropies."""
    mel_shift: int = 4
    """Each utterance is moved by up to this many mel bins, up or down: a shorter or longer vocal tract."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Everything the teacher learns from, as tensors; the first axis is the utterance."""

    features: Tensor
    tokens: Tensor
    """The decoder's input from ``<|startoftranscript|>`` on."""
    labels: Tensor
    """What should follow each token; the prompt and the padding are ignored."""
    phones: Tensor
    words: Tensor
    num_phones: int
    num_words: int


@dataclass(frozen=True, kw_only=True)
class WordErrors:
    """A word error rate, and the number of words it was measured on."""

    rate: float
    words: int


def prepare(utterances: list[Utterance], tokenizer: WhisperTokenizer, extractor: WhisperFeatureExtractor) -> Lessons:
    """Load the training speech."""
    sequences = [tokenizer(utterance.text).input_ids for utterance in utterances]
    prompt, longest = len(tokenizer.prefix_tokens), max(map(len, sequences))
    tokens = torch.full((len(sequences), longest - 1), tokenizer.pad_token_id)
    labels = torch.full((len(sequences), longest - 1), _IGNORED)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence) - 1] = torch.tensor(sequence[:-1])
        labels[row, prompt - 1 : len(sequence) - 1] = torch.tensor(sequence[prompt:])
    phones, words, num_phones, num_words = frame_labels(utterances)
    return Lessons(
        features=load_features(utterances, extractor),
        tokens=tokens,
        labels=labels,
        phones=phones,
        words=words,
        num_phones=num_phones,
        num_words=num_words,
    )


def train(model: WhisperForConditionalGeneration, lessons: Lessons, recipe: Recipe) -> None:
    """Train ``model`` in place."""
    width = model.config.d_model
    phone_head, word_head = nn.Linear(width, lessons.num_phones), nn.Linear(width, lessons.num_words)
    parameters = [*model.parameters(), *phone_head.parameters(), *word_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, recipe))
    order = random.Random(recipe.seed)
    queue: list[int] = []
    model.train()
    started_s = time.monotonic()
    for step in range(1, recipe.steps + 1):
        if len(queue) < recipe.batch_size:
            queue += order.sample(range(len(lessons.features)), len(lessons.features))
        rows, queue = torch.tensor(queue[: recipe.batch_size]), queue[recipe.batch_size :]
        features = _shift_mels(lessons.features[rows], recipe.mel_shift)
        output = model(input_features=features, decoder_input_ids=lessons.tokens[rows])
        frames = output.encoder_last_hidden_state
        text_loss = _cross_entropy(output.logits, lessons.labels[rows])
        frame_loss = _cross_entropy(phone_head(frames), lessons.phones[rows])
        frame_loss = frame_loss + _cross_entropy(word_head(frames), lessons.words[rows])
        optimizer.zero_grad()
        (text_loss + recipe.frame_weight * frame_loss).backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            left_s = (time.monotonic() - started_s) * (recipe.steps - step) / step
            losses = f"text {text_loss.item():.3f}, frames {frame_loss.item():.3f}"
            sys.stderr.write(f"step {step} of {recipe.steps}: {losses}; {left_s:.0f} s left\n")
    model.eval()


def measure(
    model: WhisperForConditionalGeneration, tokenizer: WhisperTokenizer, features: Tensor, texts: list[str]
) -> WordErrors:
    """Word error rate of greedy decoding over all of ``features``."""
    hypotheses: list[str] = []
    with torch.inference_mode():
        for batch in features.split(32):
            ids = model.generate(input_features=batch, max_length=MAX_TOKENS, do_sample=False, num_beams=1)
            hypotheses += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return WordErrors(rate=float(jiwer.wer(texts, hypotheses)), words=sum(len(text.split()) for text in texts))


def save(
    folder: Path,
    model: WhisperForConditionalGeneration,
    tokenizer: WhisperTokenizer,
    extractor: WhisperFeatureExtractor,
) -> None:
    """Write a plain Hugging Face directory, its weights in half precision.

    ``dtype`` in its configuration stays float32, so that ``from_pretrained`` computes in float32 unless told otherwise.
    """
    model.half().save_pretrained(folder)
    model.float().config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extractor.save_pretrained(folder)


def _shift_mels(features: Tensor, limit: int) -> Tensor:
    """Move each spectrogram by a random number of mel bins; the outermost bin fills the gap."""
    num_utterances, num_mels, _ = features.shape
    shifts = torch.randint(-limit, limit + 1, (num_utterances, 1))
    sources = (torch.arange(num_mels) + shifts).clamp(0, num_mels - 1)
    return features[torch.arange(num_utterances)[:, None], sources]


def _lr_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine decay to zero."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.teacher", description="Train the demo's tiny teacher.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder written by demo.corpus --for-teacher")
    parser.add_argument("--out", type=Path, required=True, help="where to save the model, e.g. demo/teacher")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help=f"optimizer steps (default: {Recipe.steps})")
    options = parser.parse_args(arguments)
    utterances = {split: read_split(options.corpus / split) for split in ("train", "dev", "test")}
    if not utterances["train"] or not utterances["train"][0].phones:
        sys.stderr.write(
            f"no aligned speech in {options.corpus}; run: python -m demo.corpus --for-teacher {options.corpus}\n"
        )
        return 2
    recipe = Recipe(steps=options.steps)
    torch.set_num_threads(1)  # with one thread the sums are always added in the same order
    torch.manual_seed(recipe.seed)
    tokenizer, extractor = make_tokenizer(u.text for u in utterances["train"]), make_feature_extractor()
    model = make_model(tokenizer)
    train(model, prepare(utterances["train"], tokenizer, extractor), recipe)
    save(options.out, model, tokenizer, extractor)
    saved = WhisperForConditionalGeneration.from_pretrained(options.out, dtype=torch.float32)
    for split in ("dev", "test"):
        features = load_features(utterances[split], extractor)
        errors = measure(saved, tokenizer, features, [u.text for u in utterances[split]])
        print(f"{split}: WER {errors.rate:.1%} of {errors.words} words, on voices not heard in training")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
