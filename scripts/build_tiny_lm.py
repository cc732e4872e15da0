"""Train the embedded model `tiny:` and write its weights and card into redteam/data/embedded/.

    python -m scripts.build_tiny_lm [--out FOLDER] [--steps N]

Everything follows from the seed of `redteam.data.tiny_corpus`: documents, initial weights, order. One thread,
float32; the same machine and versions give the same bytes, others may differ in the last digits.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from redteam.core.arrays import save_arrays
from redteam.core.device import set_threads
from redteam.core.files import write_text
from redteam.core.hashing import digest_json
from redteam.core.seeding import SeedPath
from redteam.data.shipped import EMBEDDED_DIR
from redteam.data.tiny_corpus import DOCUMENTS, SEED, Document, corpus, documents
from redteam.learn.models.transformer import Shape, Transformer
from redteam.llm.tiny import ASSISTANT, CARD, END, VOCABULARY, WEIGHTS, frame, to_bytes

SHAPE = Shape(vocabulary=VOCABULARY, width=128, layers=2, heads=4, window=512, before=3)
STEPS, ROWS, PEAK, WARM, DECAY = 1300, 8, 3e-3, 50, 0.05
SEEDS = SeedPath(SEED, ("tiny-lm",))
HELD_OUT = 800  # documents that come after the training documents


def ids_of(document: Document) -> list[int]:
    """A document as the model reads it, END included."""
    head = frame(document.user, document.system)
    return [*head, *to_bytes(document.text), END]


def batches(sequences: list[list[int]], rows: int, length: int) -> Iterator[torch.Tensor]:
    """Endless (rows, length) blocks: documents in a new order each pass, one after another."""
    rng, rest = SEEDS.child("order").numpy(), np.zeros(0, np.int64)
    while True:
        order = rng.permutation(len(sequences))
        stream = np.concatenate([rest, *(sequences[i] for i in order)])
        whole = len(stream) // (rows * length) * rows * length
        yield from torch.from_numpy(stream[:whole].reshape(-1, rows, length))
        rest = stream[whole:]


def train(steps: int) -> tuple[Transformer, float]:
    """The trained network and the mean loss of its last 50 steps, in nats a token."""
    with SEEDS.child("init").as_global():
        net = Transformer(SHAPE)
    matrices = [p for p in net.parameters() if p.ndim == 2]
    vectors = [p for p in net.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.98), fused=True)
    losses: list[float] = []
    data = batches([ids_of(d) for d in documents()], ROWS, SHAPE.window)
    for step in range(steps):
        for group in optimizer.param_groups:
            down = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = PEAK * min(1.0, (step + 1) / WARM) * down
        ids = next(data)
        loss = F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} of {steps}: {np.mean(losses[-50:]):.3f} nats a token", flush=True)
    return net.eval(), float(np.mean(losses[-50:]))


@torch.inference_mode()
def held_out_losses(net: Transformer) -> dict[str, float]:
    """Nats a token on documents that follow the training documents: of the raw text, or of the answer."""
    sums: dict[str, list[float]] = {}
    for document in documents(n=DOCUMENTS + HELD_OUT)[DOCUMENTS:]:
        ids = torch.tensor([ids_of(document)[: SHAPE.window]])
        first = ids[0].tolist().index(ASSISTANT) if document.user is not None else 0
        loss = F.cross_entropy(net(ids[:, :-1])[0, first:], ids[0, first + 1 :], reduction="sum")
        total = sums.setdefault(document.kind, [0.0, 0.0])
        total[0] += loss.item()
        total[1] += ids.shape[1] - 1 - first
    return {kind: round(nats / tokens, 4) for kind, (nats, tokens) in sorted(sums.items())}


def main(out: Path, steps: int) -> None:
    """Train, halve the weights' precision, measure what is left, write."""
    set_threads(1)
    cpu = time.process_time()
    net, final = train(steps)
    cpu = time.process_time() - cpu
    halves = {name: value.numpy().astype(np.float16) for name, value in net.state_dict().items()}
    net.load_state_dict({name: torch.from_numpy(a.astype(np.float32)) for name, a in halves.items()})
    card = {
        "name": "tiny", "version": "1", "licence": "MIT, as redteam",
        "sha256": save_arrays(out / WEIGHTS, halves, {"name": "tiny", "version": "1"}),
        "shape": asdict(SHAPE), "parameters": sum(a.size for a in halves.values()), "dtype": "float16",
        "corpus": {"seed": SEED, "documents": DOCUMENTS, "sha256": digest_json(corpus())},
        "training": {
            "steps": steps, "rows": ROWS, "tokens": steps * ROWS * SHAPE.window, "peak_lr": PEAK,
            "weight_decay": DECAY, "torch": torch.__version__, "cpu_s": round(cpu), "final_loss": round(final, 4),
        },
        "held_out_nats_a_token": held_out_losses(net),
    }  # fmt: skip
    write_text(out / CARD, json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=EMBEDDED_DIR)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    main(arguments.out, arguments.steps)
