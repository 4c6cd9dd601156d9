"""A run of Lightning, in an environment of its own: `python peer_lightning.py SETTINGS`.

Written as its documentation does: a `torchvision` dataset, a LightningModule, torch's AdamW. `tuned` is channels_last
and the fused AdamW.
"""

import json
import sys
import warnings
from importlib.metadata import version

import lightning
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import FashionMNIST
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, ToTensor


class Classifier(lightning.LightningModule):
    def __init__(self, settings):
        super().__init__()
        self.settings = settings
        self.net = timm.create_model(settings["model"], in_chans=1, num_classes=10)
        if settings["style"] == "tuned":
            self.net = self.net.to(memory_format=torch.channels_last)

    def training_step(self, batch, batch_idx):  # noqa: ARG002
        pixels, labels = batch
        loss = F.cross_entropy(self.net(pixels), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):  # noqa: ARG002
        pixels, labels = batch
        logits = self.net(pixels)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.settings["learning_rate"],
            weight_decay=self.settings["weight_decay"],
            fused=True if self.settings["style"] == "tuned" else None,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Epochs(lightning.Callback):
    def on_validation_epoch_end(self, trainer, module):  # noqa: ARG002
        if not trainer.sanity_checking:
            print(f"epoch {trainer.callback_metrics['val_accuracy'].item()}", flush=True)


def loader(settings, train):
    flip = [RandomHorizontalFlip()] if train else []
    steps = [*flip, ToTensor(), Normalize([0.286], [0.353])]
    images = FashionMNIST(settings["data"], train=train, transform=Compose(steps))
    return DataLoader(
        images,
        batch_size=settings["batch_size"] if train else 256,
        shuffle=train,
        drop_last=train,
        num_workers=settings["workers"],
        persistent_workers=settings["workers"] > 0,
    )


def main(settings):
    lightning.seed_everything(settings["seed"])
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=settings["epochs"],
        gradient_clip_val=settings["clip_grad_norm"],
        default_root_dir=settings["output"],
        enable_progress_bar=False,
        callbacks=[Epochs()],
    )
    trainer.fit(Classifier(settings), loader(settings, True), loader(settings, False))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print("versions", json.dumps({name: version(name) for name in ("lightning", "torch", "timm")}), flush=True)
    main(json.loads(sys.argv[1]))
