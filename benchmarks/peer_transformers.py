"""A run of Hugging Face's Trainer, in an environment of its own: `python peer_transformers.py SETTINGS`.

Written as its documentation does: a `torchvision` dataset behind a function for the samples, a module that returns its
loss, the default optimizer (AdamW, fused). `tuned` is channels_last as well; safetensors then refuses to save the
model, so it writes no checkpoints.
"""

import json
import sys
from importlib.metadata import version

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torchvision.datasets import FashionMNIST
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, ToTensor
from transformers import Trainer, TrainerCallback, TrainingArguments


class Samples(torch.utils.data.Dataset):
    def __init__(self, settings, train):
        flip = [RandomHorizontalFlip()] if train else []
        steps = [*flip, ToTensor(), Normalize([0.286], [0.353])]
        self.images = FashionMNIST(settings["data"], train=train, transform=Compose(steps))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        pixels, label = self.images[index]
        return {"pixel_values": pixels, "labels": label}


class Classifier(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.net = timm.create_model(name, in_chans=1, num_classes=10)

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Epochs(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics, **kwargs):  # noqa: ARG002
        print(f"epoch {metrics['eval_accuracy']}", flush=True)


def main(settings):
    torch.manual_seed(settings["seed"])
    model = Classifier(settings["model"])
    if settings["style"] == "tuned":
        model = model.to(memory_format=torch.channels_last)
    arguments = TrainingArguments(
        settings["output"],
        seed=settings["seed"],
        num_train_epochs=settings["epochs"],
        per_device_train_batch_size=settings["batch_size"],
        per_device_eval_batch_size=256,
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["clip_grad_norm"],
        lr_scheduler_type="cosine",
        eval_strategy="epoch",
        save_strategy="no" if settings["style"] == "tuned" else "epoch",
        save_total_limit=1,
        dataloader_drop_last=True,
        dataloader_num_workers=settings["workers"],
        dataloader_persistent_workers=settings["workers"] > 0,
        dataloader_pin_memory=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Samples(settings, True),
        eval_dataset=Samples(settings, False),
        compute_metrics=lambda output: {"accuracy": float(np.mean(output.predictions.argmax(1) == output.label_ids))},
        callbacks=[Epochs()],
    )
    trainer.train()


if __name__ == "__main__":
    print("versions", json.dumps({name: version(name) for name in ("transformers", "torch", "timm")}), flush=True)
    main(json.loads(sys.argv[1]))
