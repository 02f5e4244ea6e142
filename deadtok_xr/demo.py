"""Train a real, tiny language model on a text that comes with every Python, and record its embedding matrix.

The text is the interpreter's own documentation, read as bytes: of the 256 byte values more than half never
occur. Parameters and optimizer state are in bfloat16, so that the dead bytes slow down, hop on the grid, freeze
and thaw within seconds of training on a laptop. All embeddings begin as one tight cluster: the live ones leave it, and
the dead ones stay neighbours, some until they are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from deadtok_xr.recorder.recorder import Recorder


@dataclass(frozen=True)
class Run:
    """The settings of one training run."""

    steps: int = 3000
    batch: int = 8
    length: int = 64
    dims: int = 64
    layers: int = 2
    heads: int = 2
    lr: float = 1e-3
    atom: float | None = None
    """None: embeddings start as N(0, 0.02). A number: all at one point, plus N(0, atom)."""
    atom_at: float = 1.0
    """The distance of that point from the origin."""
    decay: bool = False
    """Whether the learning rate falls linearly to 0, as under the Hugging Face Trainer's default."""
    seed: int = 42
    variables: tuple[str, ...] = ("W", "grad", "exp_avg", "exp_avg_sq")
    """Recording all four takes 5% longer than recording W alone."""


FULL = Run(steps=1500, batch=4, length=32, layers=1, lr=8e-4, atom=4e-5)
"""The run of `deadtok demo`, with a constant learning rate: all dead tokens freeze and thaw many times."""
QUICK = replace(FULL, steps=900, lr=1e-3, decay=True)
"""The run of `deadtok demo --quick`: the decay of the learning rate makes them freeze earlier."""


class TinyLM(nn.Module):
    """A pre-norm transformer with learned positions and a tied, bias-free output layer."""

    def __init__(self, vocabulary: int, run: Run) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, run.dims)
        self.position = nn.Embedding(run.length, run.dims)
        layer = nn.TransformerEncoderLayer(
            run.dims,
            run.heads,
            4 * run.dims,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.body = nn.TransformerEncoder(layer, run.layers, nn.LayerNorm(run.dims), enable_nested_tensor=False)
        mask = nn.Transformer.generate_square_subsequent_mask(run.length)
        self.register_buffer("mask", mask)
        nn.init.normal_(self.position.weight, std=0.02)
        nn.init.normal_(self.embedding.weight, std=0.02 if run.atom is None else run.atom)
        if run.atom is not None:
            point = functional.normalize(torch.randn(run.dims), dim=0)
            self.embedding.weight.data += run.atom_at * point

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the final hidden state, (batch, length, dims), of token ids (batch, length)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.body(self.embedding(ids) + self.position(positions), mask=self.mask, is_causal=True)


def corpus() -> NDArray[np.uint8]:
    """Return the interpreter's documentation topics as bytes (about 0.5 MB of English)."""
    from pydoc_data.topics import topics

    return np.frombuffer("\n".join(topics[k] for k in sorted(topics)).encode("ascii", "replace"), np.uint8)


def byte_level(path: str | Path, run: Run, *, progress: Callable[[int], None] = lambda step: None) -> Path:
    """Train on `corpus`, byte by byte: 256 tokens, more than half of them dead."""
    text = [chr(i) if i < 128 else f"\\x{i:02x}" for i in range(256)]  # as `label` writes bytes that are no letters
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for such a small model, more threads are slower
    try:
        return train(path, corpus(), 256, run, token_text=text, progress=progress)
    finally:
        torch.set_num_threads(threads)


def train(
    path: str | Path,
    ids: NDArray[Any],
    vocabulary: int,
    run: Run,
    *,
    token_text: list[str] | None = None,
    progress: Callable[[int], None] = lambda step: None,
    overwrite: bool = False,
) -> Path:
    """Train on a sequence of token ids, recording every step.

    The weights are bfloat16, and so are their gradients and the optimizer's state. The forward and backward pass
    compute in float32, because few CPUs have instructions for bfloat16; on others this takes a quarter of the time.

    Parameters
    ----------
    path
        The recording store to write.
    ids
        The corpus as token ids below ``vocabulary``; ids that do not occur are the dead ones.
    run
        Sizes and optimizer settings.
    progress
        Called with the number of each finished step.

    Returns
    -------
    ``path``.
    """
    torch.manual_seed(run.seed)
    model = TinyLM(vocabulary, run).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / run.steps if run.decay else 1.0)
    dead = np.setdiff1d(np.arange(vocabulary), np.unique(ids))
    dead_rows = torch.from_numpy(dead)
    weight = cast(nn.Parameter, model.embedding.weight)
    recorder = Recorder(
        weight,
        optimizer,
        path,
        variables=run.variables,
        dead=dead,
        token_text=token_text,
        attrs={"tied": True, "seed": run.seed, "model": asdict(run)},
        overwrite=overwrite,
    )
    with recorder, sdpa_kernel(SDPBackend.MATH):  # in bfloat16 on a CPU 3x faster than the fused kernel
        for step, batch in enumerate(_batches(ids, run), start=1):
            weights = {name: value.float() for name, value in model.state_dict(keep_vars=True).items()}
            hidden = torch.func.functional_call(model, weights, (batch[:, :-1],))
            logits = hidden @ weights["embedding.weight"].T
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            recorder.log(loss=loss, **_hidden_state(hidden, logits, dead_rows))
            progress(step)
    return Path(path)


def _batches(ids: NDArray[Any], run: Run) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(run.seed)
    text = torch.from_numpy(ids.astype(np.int64))
    span = torch.arange(run.length + 1)
    for _ in range(run.steps):
        starts = torch.randint(len(text) - run.length, (run.batch, 1), generator=generator)
        yield text[starts + span]


@torch.no_grad()
def _hidden_state(hidden: torch.Tensor, logits: torch.Tensor, dead: torch.Tensor) -> dict[str, torch.Tensor]:
    hidden, probability = hidden.float(), logits.float().softmax(-1)[..., dead].mean(-1)
    return {
        "h_mean": hidden.mean((0, 1)),
        "h_norm": hidden.norm(dim=-1).mean(),
        "p_dead": probability.mean(),
        # of the mean loss: the gradient of a dead row, averaged over the dead rows
        "p_h_dead": torch.einsum("bl,bld->d", probability, hidden) / probability.numel(),
    }
