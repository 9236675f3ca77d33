"""Small trainings of a Llama by loops that are not Sheaf's, on a corpus' loader; each says what its model was fed.

As a script, `other_loops.py CORPUS CHECKPOINTS`: one of two ranks, as torchrun starts them; goes on from checkpoints of
one process, and writes what it was fed and its weights to CHECKPOINTS/ranks-RANK.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from sheaf import Corpus
from sheaf.order.huggingface import in_order
from sheaf.order.loader import Loader

LENGTH, BATCH, VOCABULARY, RATE = 64, 8, 320, 0.5
Fed = list[torch.Tensor]  # input ids, one entry a call of the model


def loader_of(corpus: Corpus, **options: Any) -> Loader:
    return corpus.loader(sequence_length=LENGTH, batch=BATCH, seed=3, **options)


def model(fed: Fed) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=1, use_cache=False, **sizes))
    made.register_forward_pre_hook(lambda _, __, named: fed.append(named["input_ids"].clone()), with_kwargs=True)
    return made


def loss(made: LlamaForCausalLM, batch: dict[str, Any]) -> torch.Tensor:
    """Of a rank's part, as a part of the global batch's."""
    logits = made(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    return total / batch["valid_tokens"]


def trainer(corpus: Corpus, folder: Path, fed: Fed, *, samples: int, steps: int, **options: Any) -> Trainer:
    """Hugging Face's; samples: of one call of the model, the rest of a global batch is accumulated."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=1, use_cpu=True, report_to=[], disable_tqdm=True,
        per_device_train_batch_size=samples, gradient_accumulation_steps=BATCH // samples // ranks,
        optim="sgd", learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=0,
    )  # fmt: skip
    return in_order(Trainer)(model=model(fed), args=arguments, train_dataset=loader_of(corpus, **options))


class Module(pytorch_lightning.LightningModule):
    def __init__(self, fed: Fed) -> None:
        super().__init__()
        self.model = model(fed)

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        return loss(self.model, batch) * self.trainer.world_size  # Lightning takes the mean over ranks

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), RATE)


def lightning(folder: Path, *, steps: int, **options: Any) -> pytorch_lightning.Trainer:
    every_step = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    return pytorch_lightning.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[every_step], logger=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


def as_a_rank(corpus: Corpus, folder: Path) -> None:
    fed: Fed = []
    hugging = trainer(corpus, folder / "hf", fed, samples=2, steps=2)
    hugging.train(resume_from_checkpoint=str(folder / "hf" / "checkpoint-1"))
    fed_by_lightning: Fed = []
    module = Module(fed_by_lightning)
    lightning(folder / "more", steps=2, devices=2, strategy="ddp").fit(
        module, loader_of(corpus).torch(), ckpt_path=str(folder / "lightning" / "step=1.ckpt")
    )
    told = {"hf": fed, "hf weights": hugging.model.state_dict()}
    told |= {"lightning": fed_by_lightning, "lightning weights": module.model.state_dict()}
    torch.save(told, folder / f"ranks-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    as_a_rank(Corpus.open(Path(sys.argv[1])), Path(sys.argv[2]))
