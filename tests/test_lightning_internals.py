"""Undocumented parts of Lightning: each test fails if an upgrade changes one."""

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from ddpm_lab.callbacks import lightning_internals


class Module(L.LightningModule):
    """One weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Data(L.LightningDataModule):
    """Eight batches for training, two for validation."""

    data = "data"

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(8, 1))

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(2, 1))


class Save(L.Callback):
    """Keeps the loops of a checkpoint that is dumped at the end of a batch, or after validation."""

    def __init__(self, hook):
        self.hook, self.loops = hook, {}

    def _save(self, trainer):
        checkpoint = trainer._checkpoint_connector.dump_checkpoint()
        lightning_internals.set_end_of_batch(checkpoint)
        loops = checkpoint["loops"]["fit_loop"]
        del loops["epoch_loop.val_loop.batch_progress"]["is_last_batch"]  # a restart ignores it
        self.loops[trainer.global_step] = loops

    def on_train_batch_end(self, trainer, *args):
        if self.hook == "batch":
            self._save(trainer)

    def on_validation_end(self, trainer, *args):
        if self.hook == "validation":
            self._save(trainer)


def trainer_of(*callbacks, **options):
    defaults = {
        "max_steps": 4,
        "val_check_interval": 2,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    return L.Trainer(callbacks=[*callbacks], **defaults | options)


def test_callbacks_returns_the_trainers_list():
    save = Save("batch")
    assert save in lightning_internals.callbacks(trainer_of(save))


def test_data_returns_the_datamodule_passed_to_fit():
    trainer = trainer_of()
    trainer.fit(Module(), Data())
    assert lightning_internals.datamodule(trainer) is Data.data


def test_max_steps_can_be_set():
    trainer = trainer_of()
    with pytest.raises(AttributeError):
        trainer.max_steps = 7
    lightning_internals.set_max_steps(trainer, 7)
    assert trainer.max_steps == 7
    trainer.fit(Module(), Data())
    assert trainer.global_step == 7


def test_loop_state_does_not_depend_on_the_hook():
    saves = [Save("batch"), Save("validation")]
    for save in saves:
        trainer_of(save).fit(Module(), Data())
    batch, validation = (save.loops for save in saves)
    assert [*validation] == [2, 4] and all(batch[step] == validation[step] for step in validation)
    progress = batch[4]["epoch_loop.batch_progress"]["total"]
    assert (progress["completed"], progress["processed"]) == (3, 4)
    assert batch[4]["epoch_loop.state_dict"]["_batches_that_stepped"] == 3


def test_csv_rows_are_the_content_of_the_file(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"a": 0.5}, step=3)
    assert lightning_internals.csv_rows(logger) == [{"a": 0.5, "step": 3}]
    lightning_internals.csv_rows(logger)[:] = [{"b": 1, "step": 4}]
    logger.save()
    assert (tmp_path / "metrics.csv").read_text().split() == ["b,step", "1,4"]
