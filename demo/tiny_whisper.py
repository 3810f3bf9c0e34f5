"""A Whisper small enough to train on one CPU thread: its tokenizer, its features, its architecture."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

WINDOW_S = 2
FRAMES_PER_SECOND = 50
NUM_MELS = 80
MAX_TOKENS = 32

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)


def make_tokenizer(texts: Iterable[str]) -> WhisperTokenizer:
    """Byte-level BPE in which every word of ``texts``, with the space before it, is one token.

    The prefix space makes "two" the same token at the start of a sentence as within it.
    """
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # 4096 is more than a few dozen words can fill: learning ends when every word is one token.
    learner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=4096, initial_alphabet=sorted(alphabet), show_progress=False)
    )
    merges, vocabulary = _merges_of(learner), learner.get_vocab()
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges, add_prefix_space=True)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_special_tokens({"extra_special_tokens": list(_SPECIAL_TOKENS[1:])})
    tokenizer.set_prefix_tokens()
    return tokenizer


def _merges_of(learner: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]


def make_feature_extractor() -> WhisperFeatureExtractor:
    """Whisper's log-mel spectrogram over a window of ``WINDOW_S``."""
    return WhisperFeatureExtractor(feature_size=NUM_MELS, chunk_length=WINDOW_S)


def make_model(tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    """Four encoder and two decoder layers of width 96: 0.85 million weights, random."""
    start, end = tokenizer.convert_tokens_to_ids("<|startoftranscript|>"), tokenizer.eos_token_id
    ids = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=NUM_MELS,
        d_model=96,
        encoder_layers=4,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=384,
        decoder_ffn_dim=384,
        max_source_positions=WINDOW_S * FRAMES_PER_SECOND,
        max_target_positions=MAX_TOKENS,
        dropout=0.1,
        # The defaults are ids of the real Whisper, beyond the end of this vocabulary.
        begin_suppress_tokens=None,
        suppress_tokens=None,
        **ids,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_length=MAX_TOKENS,
        is_multilingual=False,
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        return_timestamps=False,
        **ids,
    )
    return model
