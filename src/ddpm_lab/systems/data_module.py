"""The Lightning data module."""

import lightning as L

from ddpm_lab.data.module import Data, TrainBatches, ValidationBatches


class DataModule(L.LightningDataModule):
    """Serve `Data` to a trainer. Data in memory is moved to the training device."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> TrainBatches:
        trainer, data = self.trainer, self.data
        assert trainer is not None  # set by Lightning
        return TrainBatches(
            data.train.to(trainer.strategy.root_device),
            data.batch_size,
            data.flip,
            data.seed,
            workers=data.workers,
            rank=trainer.global_rank,
            world=trainer.world_size,
            done=trainer.fit_loop.epoch_loop.batch_progress.current.ready,
        )

    def val_dataloader(self) -> ValidationBatches:
        data = self.data
        return ValidationBatches(data.test, data.batch_size, data.workers)
