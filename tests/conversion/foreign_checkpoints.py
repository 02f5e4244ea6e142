"""Checkpoints in layouts of other programs: parts of ranks, Lightning, TransformerLens, families, names of steps."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from tests.conversion.foreign_arrays import moving, to_torch

Array = NDArray[Any]


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def save(content: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def adamw(moments: list[tuple[torch.Tensor, torch.Tensor]], step: int) -> dict[str, Any]:
    """The state dict of torch's AdamW."""
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False, "foreach": None}
    state = {
        i: {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": second}
        for i, (first, second) in enumerate(moments)
    }
    return {"state": state, "param_groups": [{**settings, "params": [*state]}]}


def ranks(at: Path) -> dict[str, Array]:
    first, second = moving(3, 2, 64, 16)
    halves = (slice(0, 32), slice(32, 64))
    for rank, (rows, dims) in enumerate(zip(halves, (slice(0, 8), slice(8, 16)), strict=True)):
        save(
            {"tok_embeddings.weight": to_torch(first[:, dims]), "norm.weight": torch.ones(16).bfloat16(),
             "output.weight": to_torch(second[rows]), "layers.0.attention.wq.weight": zeros(8, 16) + rank},
            at / "llama" / f"consolidated.{rank:02d}.pth",
        )  # fmt: skip
        save(
            {"args": argparse.Namespace(tensor_model_parallel_size=2), "iteration": 1000,
             "model": {"language_model": {"embedding": {"word_embeddings": {"weight": to_torch(first[rows])}}}}},
            at / "megatron" / "iter_0001000" / f"mp_rank_{rank:02d}" / "model_optim_rng.pt",
        )  # fmt: skip
    (at / "llama" / "params.json").write_text('{"dim": 16, "n_layers": 1, "vocab_size": -1}')
    save(
        {"tok_embeddings.weight": to_torch(first), "norm.weight": torch.ones(16).bfloat16(),
         "output.weight": to_torch(second), "layers.0.attention.wq.weight": zeros(16, 16)},
        at / "llama_of_one" / "consolidated.00.pth",
    )  # fmt: skip
    for step in (1000, 2000):
        folder = at / "neox" / f"global_step{step}"
        for rank, rows in enumerate(halves):
            for layer, content in {
                0: {"word_embeddings.weight": to_torch(first[rows])},
                2: {"attention.dense.weight": zeros(16, 8) + rank},
                5: {"final_linear.weight": to_torch(second[rows])},
            }.items():
                save(content, folder / f"layer_{layer:02d}-model_{rank:02d}-model_states.pt")
            save(
                {"module": None, "global_steps": step, "mp_world_size": 2},
                folder / f"mp_rank_{rank:02d}_model_states.pt",
            )
    weights = to_torch(first)
    folder = at / "deepspeed" / "global_step1000"
    module = {"transformer.wte.weight": weights, "transformer.ln_f.weight": zeros(16), "lm_head.weight": weights}
    save({"module": module, "optimizer": None, "global_steps": 1000, "global_samples": 8000, "mp_world_size": 1},
         folder / "mp_rank_00_model_states.pt")  # fmt: skip
    for rank in (0, 1):
        flat = {"exp_avg": torch.zeros(520), "exp_avg_sq": torch.zeros(520), "step": torch.tensor(1000.0)}
        save({"optimizer_state_dict": {"base_optimizer_state": {"state": {0: flat}}}},
             folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")  # fmt: skip
    (at / "deepspeed" / "latest").write_text("global_step1000")
    return {"W": second[None], "E": first[None]}


def lightning(at: Path) -> dict[str, Array]:
    w, first, second = moving(3, 3, 40, 16), moving(4, 3, 40, 16), np.abs(moving(5, 3, 40, 16))
    for i, step in enumerate((100, 200, 300)):
        moments = [(to_torch(first[i]), to_torch(second[i])), (zeros(16, 16), zeros(16, 16))]
        checkpoint: dict[str, Any] = {
            "epoch": i, "global_step": step, "pytorch-lightning_version": "2.4.0",
            "state_dict": {"model.embed.weight": to_torch(w[i]), "model.body.weight": zeros(16, 16)},
            "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": i + 1, "completed": i}}}},
            "callbacks": {"ModelCheckpoint{'mode': 'min'}": {"best_model_score": torch.tensor(1.5)}},
            "optimizer_states": [adamw(moments, step)], "hyper_parameters": {"lr": 1e-3, "dim": 16},
        }  # fmt: skip
        save(checkpoint, at / "epoch_and_step" / f"epoch={i}-step={step}.ckpt")
        save(checkpoint, at / "step" / f"step={step}.ckpt")
        checkpoint["hyper_parameters"]["lr"] = np.float64(1e-3)
        save(checkpoint, at / "numpy_number" / f"epoch={i}-step={step}.ckpt")
    shutil.copy(at / "epoch_and_step" / "epoch=2-step=300.ckpt", at / "epoch_and_step" / "last.ckpt")
    return {"W": w, "exp_avg": first, "exp_avg_sq": second}


def transformer_lens(at: Path) -> dict[str, Array]:
    first, second = moving(3, 4, 50, 16), moving(4, 4, 50, 16)
    for i in range(4):
        save(
            {"embed.W_E": to_torch(first[i]), "pos_embed.W_pos": zeros(32, 16), "blocks.0.attn.W_Q": zeros(2, 16, 8),
             "blocks.0.mlp.W_in": zeros(16, 64), "unembed.W_U": to_torch(second[i].T), "unembed.b_U": zeros(50)},
            at / "run" / f"step{i * 1000}.pt",
        )  # fmt: skip
    turned = np.ascontiguousarray(second.transpose(0, 2, 1)).astype(np.float32)
    np.savez(at / "stacked.npz", W_E=first.astype(np.float32), W_U=turned, steps=np.arange(4) * 1000)
    return {"W": second, "E": first}


def families(at: Path) -> dict[str, Array]:
    first, second = moving(3, 2, 50, 16)
    i, o, positions, norm, square = to_torch(first), to_torch(second), zeros(32, 16), zeros(16), zeros(16, 16)
    bert = {
        "bert.embeddings.word_embeddings.weight": i, "bert.embeddings.position_embeddings.weight": positions,
        "bert.embeddings.token_type_embeddings.weight": zeros(2, 16), "cls.predictions.bias": zeros(50),
        "cls.predictions.transform.dense.weight": square,
    }  # fmt: skip
    for name, tensors in {
        "bert": bert,
        "sentence_t5": {"shared.weight": i, "encoder.block.0.layer.0.SelfAttention.q.weight": square},
        "opt": {"model.decoder.embed_tokens.weight": i, "model.decoder.embed_positions.weight": positions,
                "lm_head.weight": i.clone()},
        "bloom": {"word_embeddings.weight": i, "word_embeddings_layernorm.weight": norm},
        "gemma3": {"language_model.model.embed_tokens.weight": i,
                   "vision_tower.vision_model.embeddings.patch_embedding.weight": zeros(16, 3, 14, 14),
                   "vision_tower.vision_model.embeddings.position_embedding.weight": positions},
        "gpt2": {"wte.weight": i, "wpe.weight": positions, "h.0.attn.bias": zeros(1, 1, 8, 8)},
        "bert_untied": {**bert, "cls.predictions.decoder.weight": o},
        "t5": {"shared.weight": i, "encoder.embed_tokens.weight": i.clone(), "decoder.embed_tokens.weight": i.clone(),
               "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": zeros(32, 8),
               "lm_head.weight": o},
        "llama_meta": {"tok_embeddings.weight": i, "norm.weight": norm, "output.weight": o},
        "gpt_neox": {"gpt_neox.embed_in.weight": i, "gpt_neox.final_layer_norm.weight": norm, "embed_out.weight": o},
        "gpt_j": {"transformer.wte.weight": i, "lm_head.weight": o, "lm_head.bias": zeros(50)},
        "rwkv": {"emb.weight": i, "blocks.0.att.key.weight": square, "head.weight": o},
        "from_scratch": {"tok_emb.weight": i, "pos_emb.weight": positions, "trf_blocks.0.att.out_proj.weight": square,
                         "out_head.weight": o},
        "olmo": {"transformer.wte.weight": i, "transformer.blocks.0.ff_out.weight": zeros(16, 64),
                 "transformer.ff_out.weight": o},
        "xlnet": {"transformer.word_embedding.weight": i, "transformer.mask_emb": zeros(1, 1, 16),
                  "lm_loss.weight": o, "lm_loss.bias": zeros(50)},
        "deepseek_mtp": {"model.embed_tokens.weight": i, "model.layers.61.embed_tokens.weight": i.clone(),
                         "lm_head.weight": o, "model.layers.61.shared_head.head.weight": o.clone()},
        "word_language_model": {"encoder.weight": i, "decoder.weight": o, "decoder.bias": zeros(50),
                                "transformer_encoder.layers.0.self_attn.in_proj_weight": zeros(48, 16)},
    }.items():  # fmt: skip
        save_file(tensors, at / f"{name}.safetensors", {"format": "pt"})
    return {"W_untied": second[None], "E_untied": first[None], "W_tied": first[None]}


def step_names(at: Path) -> dict[str, Array]:
    w, first, second = moving(3, 4, 40, 16), moving(4, 4, 40, 16), np.abs(moving(5, 4, 40, 16))
    steps = (500, 1000, 1500, 2000)

    def model(i: int) -> dict[str, torch.Tensor]:
        return {"embed_tokens.weight": to_torch(w[i]), "norm.weight": torch.ones(16)}

    for i, step in enumerate(steps):
        optimizer = adamw([(to_torch(first[i]), to_torch(second[i])), (torch.zeros(16), torch.zeros(16))], step)
        folder = at / "accelerate" / f"checkpoint_{i}"
        save(optimizer, folder / "optimizer.bin")
        save({"last_epoch": step, "_step_count": step + 1}, folder / "scheduler.bin")
        save_file(model(i), folder / "model.safetensors", {"format": "pt"})
        save({"model": model(i), "optimizer": optimizer, "iter_num": step}, at / "saves" / f"ckpt_{i}.pt")
        for name, label in {
            "thousands": ("step_1k", "step_2k", "step_10k", "step_100k")[i],
            "epochs": f"epoch_{i // 2}_step_{step}",
            "middle": f"model_{step}_steps",
            "loss": f"step{step}-loss{3 - i / 4:.2f}",
            "loss_last": f"model_step{step}_valloss_3.{9 - i}",
        }.items():
            save({"model": model(i)}, at / name / f"{label}.pt")
    for i, step in enumerate((0, 1000, 2000, 10000)):
        save_olmo(at / "olmo" / f"step{step}-unsharded", step, w[i], first[i], second[i])
        folder = at / "olmo_tokens" / f"step{step}-tokens{step // 250}B"
        folder.mkdir(parents=True)
        save_file({f"model.{k}": v for k, v in model(i).items()}, folder / "model.safetensors", {"format": "pt"})
    return {"W": w, "exp_avg": first, "exp_avg_sq": second}


def save_olmo(folder: Path, step: int, w: Array, first: Array, second: Array) -> None:
    """Model, optimizer with moments by name, and state of the training in three files."""
    names = {"transformer.wte.weight": to_torch(w), "transformer.ln_f.weight": torch.ones(16)}
    state = {"step": torch.tensor(float(step)), "exp_avg": to_torch(first), "exp_avg_sq": to_torch(second)}
    group = {"params": [*names], "param_names": [*names], "lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}
    save(names, folder / "model.pt")
    save({"state": {"transformer.wte.weight": state} if step else {}, "param_groups": [group]}, folder / "optim.pt")
    save({"epoch": 0, "global_step": step, "world_size": 1}, folder / "train.pt")
    (folder / "config.json").write_text(json.dumps({"run_name": "small"}))
