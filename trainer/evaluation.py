"""How good a model is on a data set: word error rate by greedy decoding, cross-entropy, KL to the teacher, speed."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.batches import AudioDataset, Batch, collate
from trainer.config import EvaluationSpec
from trainer.events import Metrics
from trainer.runtime import Runtime
from trainer.scoring import score
from trainer.students import Student, StudentOutputs
from trainer.teacher import TeacherNeeds, TeacherSource
from trainer.token_terms import Target, sum_token_terms
from trainer.utterances import Utterance
from trainer.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """A data set and which of its utterances are evaluated, longest first so that batches are alike."""

    dataset: AudioDataset
    indices: tuple[int, ...]


def choose_utterances(dataset: AudioDataset, count: int | None) -> EvaluationSet:
    """Take a fixed subset, or all.

    Ordered by a hash of the names: it depends on no seed, so every trial of every study measures the same utterances.
    """
    indices = sorted(range(len(dataset)), key=lambda i: hashlib.sha256(dataset.utterances[i].name.encode()).digest())
    chosen = sorted(indices[:count], key=lambda i: (-dataset.utterances[i].header.num_samples, i))
    return EvaluationSet(dataset=dataset, indices=tuple(chosen))


@torch.no_grad()
def evaluate(
    student: Student,
    chosen: EvaluationSet,
    *,
    vocabulary: Vocabulary,
    teacher: TeacherSource | None,
    spec: EvaluationSpec,
    runtime: Runtime,
    tick: Callable[[], None],
    is_teacher: bool = False,
) -> Metrics:
    """Measure a model; leave its mode, and torch's random state, as they were.

    ``is_teacher``: the model in the student's place is the teacher itself, and hears its own features.
    The real-time factor counts encoder and decoding, not reading audio. ``tick`` is called after every batch.
    """
    was_training = student.training
    student.eval()
    try:
        hypotheses: list[str] = []
        references: list[str] = []
        sums = torch.zeros(2, dtype=torch.float64)
        num_tokens, audio_s, compute_s = 0, 0.0, 0.0
        for start in range(0, len(chosen.indices), spec.batch_size):
            indices = chosen.indices[start : start + spec.batch_size]
            utterances = [chosen.dataset.utterances[index] for index in indices]
            examples = [chosen.dataset[index] for index in indices]
            batch = collate(examples, vocabulary, pin_memory=runtime.is_cuda).to(runtime.device)
            features = batch.teacher_features if is_teacher else batch.features
            limits = limit_tokens(utterances, spec)
            with runtime.autocast():
                runtime.synchronize()
                started = time.perf_counter()
                encoder_states = student.encode(features)
                rows = decode_greedily(student, encoder_states, vocabulary, limits)
                compute_s += time.perf_counter() - started  # decoding has read its tokens: the device is done
                outputs = student.decode(encoder_states, batch.decoder_input_ids)
            sums += _compare(outputs, batch, teacher, runtime)
            num_tokens += int(batch.token_mask.sum())
            audio_s += sum(utterance.duration_s for utterance in utterances)
            hypotheses += vocabulary.decode(rows)
            references += [utterance.text for utterance in utterances]
            tick()
    finally:
        student.train(was_training)
    result = score(references, hypotheses, bootstrap_samples=spec.bootstrap_samples)
    return Metrics(
        wer=result.wer,
        errors=result.errors,
        words=result.words,
        utterances=result.utterances,
        interval=result.interval,
        cross_entropy=float(sums[0]) / num_tokens,
        kl=float(sums[1]) / num_tokens if teacher is not None else None,
        rtf=compute_s / audio_s,
    )


def limit_tokens(utterances: Sequence[Utterance], spec: EvaluationSpec) -> list[int]:
    """Return how many tokens a hypothesis of each may have."""
    return [int(spec.tokens_per_second * utterance.duration_s) + 2 for utterance in utterances]


def decode_greedily(
    student: Student,
    encoder_states: Float[Tensor, "batch time width"],
    vocabulary: Vocabulary,
    limits: Sequence[int],
) -> list[list[int]]:
    """Return the most probable next token after another, until the end or the row's own limit.

    The same tokens as transformers' ``generate`` (a test holds them equal), which takes its prompt and its limits for
    the whole batch and wraps a batch in as much Python again. The limit keeps a looping hypothesis from stalling a run;
    being each row's own, it makes a transcript independent of the batch that it was decoded in.
    """
    decoder, project = student.whisper.model.decoder, student.whisper.proj_out
    device, end = encoder_states.device, vocabulary.end
    room = vocabulary.max_positions - len(vocabulary.prompt)
    row_limits = torch.tensor([min(limit, room) for limit in limits], device=device)
    inputs = torch.tensor(vocabulary.prompt, device=device).expand(len(limits), -1)
    suppressed = torch.tensor(vocabulary.suppressed, dtype=torch.long, device=device)
    suppressed_first = torch.tensor(vocabulary.suppressed_first, dtype=torch.long, device=device)
    is_done = torch.zeros(len(limits), dtype=torch.bool, device=device)
    cache, columns = None, []
    for position in range(min(max(limits), room)):
        outputs = decoder(input_ids=inputs, encoder_hidden_states=encoder_states, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        logits = project(outputs.last_hidden_state[:, -1])
        logits[:, suppressed] = -torch.inf
        if position == 0:
            logits[:, suppressed_first] = -torch.inf
        tokens = logits.argmax(-1).masked_fill(is_done | (row_limits <= position), end)
        is_done |= tokens == end
        columns.append(tokens)
        if bool(is_done.all()):  # GPU synchronisation, once per token
            break
        inputs = tokens[:, None]
    rows: list[list[int]] = torch.stack(columns, dim=1).tolist()  # GPU synchronisation
    return [row[: row.index(end)] if end in row else row for row in rows]


def _compare(
    outputs: StudentOutputs, batch: Batch, teacher: TeacherSource | None, runtime: Runtime
) -> Float[Tensor, "2"]:
    """Return the summed cross-entropy against the transcript and KL to the teacher at temperature 1."""
    target = None
    if teacher is not None:
        said = teacher.outputs(batch, TeacherNeeds(decoder_states=True))
        assert said.decoder_states is not None and said.head is not None
        target = Target(states=said.decoder_states, head=said.head, temperature=1.0)
    with runtime.autocast():
        sums = sum_token_terms(outputs.decoder_states, outputs.head, batch.labels, target)
    return sums[:2].double().cpu()  # GPU synchronisation, once per batch
