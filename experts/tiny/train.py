"""Trains one of the tiny language models: `python -m experts.tiny.train --name NAME --out DIR --seed S`."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experts.tiny.tasks import DIFFICULTIES, FAMILIES, Question, draw, generate
from leeroo_env.files import new_directory

WEIGHTS = Path(__file__).parent / "weights"
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
HEAD_SIZE = 32  # vLLM's attention kernels do not take smaller heads
IGNORED = -100
MAX_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Model:
    """Architecture, families of questions and training length of one language model."""

    hidden_size: int
    layers: int
    intermediate_size: int
    steps: int
    learning_rate: float
    families: tuple[str, ...] = tuple(FAMILIES)


MODELS: dict[str, Model] = {
    "nano": Model(32, 2, 64, 3000, 1e-2),
    "small": Model(64, 2, 128, 4000, 6e-3),
    "large": Model(128, 4, 384, 5000, 4e-3),
    "arithmetic": Model(64, 3, 192, 5000, 6e-3, ("add", "subtract", "multiply")),
    "calendar": Model(64, 2, 128, 3500, 6e-3, ("weekday",)),
}


@dataclass
class Config:
    """The settings of a training run; equal settings give equal weights on the same machine."""

    name: str
    """the model of MODELS to train"""
    out: Path = WEIGHTS
    """the model is written to the directory OUT/NAME"""
    seed: int = 0
    """seed of the initial weights and of the questions"""
    steps: int | None = None
    """optimiser steps, by default those of the model"""
    batch_size: int = 64
    """questions per optimiser step"""
    micro_batches: int = 2
    """parts of a batch, grouped by length to save padding"""
    curriculum: float = 0.5
    """fraction of the steps in which the hardest difficulty rises from the lowest to the highest"""
    warmup: float = 0.05
    """fraction of the steps in which the learning rate rises; then it follows a cosine to zero"""
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    threads: int = 1
    """torch threads; several are slower than one on a busy machine"""
    exam_questions: int = 900
    """test questions at the end"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; a beginning-of-text token before each text, padding on the left."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def build_model(spec: Model, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama model with random weights."""
    heads = spec.hidden_size // HEAD_SIZE
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_SIZE,
        max_position_embeddings=128,
        initializer_range=spec.hidden_size**-0.5,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=MAX_ANSWER_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def prompt(text: str) -> str:
    """The prompt of a question; a tiny model continues with the answer and the end-of-text token."""
    return f"{text}\n"


def encode(questions: Sequence[Question], token_ids: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Inputs and targets [N, T] for next-token prediction; targets outside the answer are IGNORED."""
    rows, answer_starts = [], []
    for question in questions:
        asked = prompt(question.text)
        characters = [token_ids[c] for c in asked + question.reference]
        rows.append([token_ids["<bos>"], *characters, token_ids["<eos>"]])
        answer_starts.append(1 + len(asked))
    width = max(map(len, rows))
    tokens = torch.tensor([row + [token_ids["<pad>"]] * (width - len(row)) for row in rows])
    targets = torch.full_like(tokens, IGNORED)
    for i, (row, start) in enumerate(zip(rows, answer_starts, strict=True)):
        targets[i, start : len(row)] = tokens[i, start : len(row)]
    return tokens[:, :-1], targets[:, 1:]


def draw_batch(
    rng: np.random.Generator, spec: Model, config: Config, progress: float, token_ids: dict[str, int]
) -> list[tuple[Tensor, Tensor]]:
    """A batch of training questions in parts of similar length, each with inputs and targets [N, T].

    `progress` is the fraction of training that is done. Easy questions come first (a curriculum), because copying and
    carrying are learned much faster on short ones.
    """
    hardest = min(len(DIFFICULTIES), 1 + int(len(DIFFICULTIES) * progress / config.curriculum))
    difficulties = DIFFICULTIES[:hardest]
    questions = [draw(rng, spec.families, held_out=False, difficulties=difficulties) for _ in range(config.batch_size)]
    questions.sort(key=lambda q: len(q.text) + len(q.reference))
    size = math.ceil(config.batch_size / config.micro_batches)
    return [encode(questions[i : i + size], token_ids) for i in range(0, config.batch_size, size)]


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up to 1, then a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def build_optimizers(model: LlamaForCausalLM, learning_rate: float, weight_decay: float) -> list[Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the gains of the normalisations.

    In the same number of steps Muon reaches a lower loss here than AdamW alone.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    gains = [p for p in model.parameters() if p.ndim == 1]
    embedding: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    muon = torch.optim.Muon(matrices, learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW([embedding, *gains], learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]


def backward(model: LlamaForCausalLM, parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Adds the gradients of a batch; returns its mean loss in nats per answer token."""
    answer_tokens = sum(int((targets != IGNORED).sum()) for _, targets in parts)
    total = 0.0
    for inputs, targets in parts:
        # Padding is on the right here, so causal attention alone keeps it out of the answers
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        wanted = targets != IGNORED
        loss = F.cross_entropy(model.lm_head(hidden[wanted]), targets[wanted], reduction="sum") / answer_tokens
        loss.backward()
        total += loss.item()
    return total


def train(config: Config) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """The trained model, its tokenizer and the loss of every step."""
    if config.name not in MODELS:
        raise ValueError(f"model {config.name!r} is none of {', '.join(MODELS)}")
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    spec = MODELS[config.name]
    steps = spec.steps if config.steps is None else config.steps
    tokenizer = build_tokenizer()
    token_ids = tokenizer.get_vocab()
    model = build_model(spec, tokenizer)
    optimizers = build_optimizers(model, spec.learning_rate, config.weight_decay)
    losses: list[float] = []
    bar = tqdm(range(steps), desc=config.name, mininterval=5)
    for step in bar:
        losses.append(backward(model, draw_batch(rng, spec, config, step / steps, token_ids)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * learning_rate_factor((step + 1) / steps, config.warmup)
            optimizer.step()
            optimizer.zero_grad()
        bar.set_postfix(loss=f"{np.mean(losses[-100:]):.3f}", refresh=False)
    return model.eval(), tokenizer, losses


@torch.inference_mode()
def answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], batch_size: int = 256
) -> list[str]:
    """Greedy answers to the texts."""
    answers = []
    for i in range(0, len(texts), batch_size):
        inputs = tokenizer([prompt(t) for t in texts[i : i + batch_size]], return_tensors="pt", padding=True)
        outputs = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])  # type: ignore[misc]
        answers += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def accuracies(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Fraction of exactly right answers: of all questions under "all", then of each family."""
    right = defaultdict(list)
    for question, given in zip(questions, answers, strict=True):
        for key in ("all", question.domain):
            right[key].append(given == question.reference)
    return {key: round(float(np.mean(right[key])), 4) for key in ("all", *sorted(right.keys() - {"all"}))}


def update_json(path: Path, changes: dict) -> None:
    """Sets keys of a JSON file, which is created if necessary."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes, indent=2) + "\n")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict, directory: Path) -> None:
    """Writes the model directory atomically.

    Weights are stored in half precision to save space and loaded in single precision, as the configuration says.
    """
    with new_directory(directory) as temporary:
        tokenizer.save_pretrained(temporary)
        model.half().save_pretrained(temporary)
        model.float()
        (temporary / "model.safetensors").chmod(0o644)
        update_json(temporary / "config.json", {"dtype": "float32"})
        # This name works before and since version 5 of transformers
        update_json(temporary / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        update_json(temporary / "training.json", record)


def main(config: Config) -> None:
    """Trains, tests and saves one model."""
    start = time.perf_counter()
    model, tokenizer, losses = train(config)
    seconds = time.perf_counter() - start
    record = {
        "name": config.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seed": config.seed,
        "steps": len(losses),
        "batch_size": config.batch_size,
        "seconds": round(seconds, 1),
        "final_loss": round(float(np.mean(losses[-100:])), 4),
        "model": asdict(MODELS[config.name]),
    }
    model.half().float()
    questions = generate(config.exam_questions, seed=config.seed)
    record["accuracy"] = accuracies(questions, answer(model, tokenizer, [q.text for q in questions]))
    save(model, tokenizer, record, config.out / config.name)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Config))
