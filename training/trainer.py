"""Stage 3: transformers' `Trainer` with a loss that treats each partition its own way, phase by phase."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import datasets
import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import ProcessorMixin, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, seed_worker
from transformers.utils import logging

from pacl import PACLModel

from .collator import PAIR_COLUMNS, PACLCollator, PairDataset, training_transform
from .distributed import EvaluationBatches, RowGatherer, gather_rows, world_size
from .losses import PACLLossOutput, pacl_loss
from .parking import ParkedTextTower
from .partition import Partition
from .sampler import PartitionBatchSampler
from .schedule import PhaseSchedule
from .streaming import StreamedBatches, StreamedPairs, collate_unless_skipped
from .training_arguments import PACLTrainingArguments, paper_learning_rate

logger = logging.get_logger(__name__)


class PACLTrainer(Trainer):
    """
    Trains the vision tower and the projections of a [`PACLModel`] on partitioned, clustered posts.

    Args:
        model ([`PACLModel`]):
            The dual encoder. Its `config.temperature` is τ.
        args ([`PACLTrainingArguments`]):
            Everything that `TrainingArguments` takes, and the fields above.
        train_dataset (`datasets.Dataset` or [`StreamedPairs`]):
            With the columns that `partition_dataset` and `cluster_dataset` write. Where `text_features` are among them
            the text tower does not run.
        eval_dataset (`datasets.Dataset`, *optional*):
            The same; its loss counts all partitions and its pictures are not augmented.
        processing_class ([`PACLProcessor`]):
            Image processor and tokenizer; saved with every checkpoint.
        kwargs (*optional*):
            As for `Trainer`.

    The log gets, beside `Trainer`'s own figures, `loss_strong`, `pairs_strong` and so on: each partition's mean loss
    and number of pairs since the last entry.

    Example:

    ```python
    trainer = PACLTrainer(model, PACLTrainingArguments("out"), train_dataset=posts, processing_class=processor)
    trainer.train()
    ```
    """

    args: PACLTrainingArguments
    _sampler: PartitionBatchSampler | StreamedBatches

    def __init__(
        self,
        model: PACLModel,
        args: PACLTrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: ProcessorMixin | None = None,
        **kwargs: Any,
    ):
        args = args if args is not None else PACLTrainingArguments("tmp_trainer")
        if not isinstance(args, PACLTrainingArguments):
            raise TypeError(f"args must be PACLTrainingArguments, got {type(args).__name__}")
        if processing_class is None:
            raise ValueError("processing_class is missing: give the model's PACLProcessor")
        if args.learning_rate is None:
            args.learning_rate = paper_learning_rate(model.config.vision_config)
            logger.info(f"learning_rate {args.learning_rate} for the vision tower, as in the paper")

        image_processor = processing_class.image_processor
        whole_pictures = training_transform(image_processor, "none", args.image_size)
        self.eval_collator = PACLCollator(processing_class, whole_pictures)
        self.train_collator = PACLCollator(processing_class, args.picture_transform(image_processor), seed=args.seed)

        self.temperature = model.config.temperature
        self.schedule = PhaseSchedule(args.num_train_epochs, args.sample_usage)
        self._active: tuple[Partition, ...] = tuple(Partition)
        self._meters: dict[str, PartitionMeter] = {}
        self._parked: ParkedTextTower | None = None
        super().__init__(
            model,
            args,
            data_collator=self.train_collator,
            train_dataset=train_dataset if isinstance(train_dataset, StreamedPairs) else _pair_datasets(train_dataset),
            eval_dataset=_pair_datasets(eval_dataset),
            processing_class=processing_class,
            **kwargs,
        )
        # Each batch's loss is a mean of its own; the Trainer divides by the number of accumulation steps.
        self.loss_is_scaled_for_ga = False
        # FSDP shards contiguous weights only; elsewhere convolutions have the layout in which they are fastest.
        layout = torch.contiguous_format if self.is_fsdp_enabled else torch.channels_last
        model.vision_model.to(memory_format=layout)

    # Data ------------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """The loader of batches in which every active partition has its share."""
        if self.train_dataset is None:
            raise ValueError("training needs a train_dataset")
        options: dict[str, Any] = {
            "batch_size": self._train_batch_size,
            "schedule": self.schedule,
            "shares": self.args.batch_shares,
            "seed": self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            "num_processes": self.args.world_size,
        }
        if isinstance(self.train_dataset, StreamedPairs):
            ranks = {"process_index": self.args.process_index, "num_workers": self.args.dataloader_num_workers}
            self._sampler = StreamedBatches(self.train_dataset, **options, **ranks)
            return self._loader(
                self._sampler,
                batch_size=None,
                collate_fn=partial(collate_unless_skipped, self.data_collator),
                persistent_workers=self.args.dataloader_persistent_workers,
            )
        pairs = cast(PairDataset, self.train_dataset)
        self._sampler = PartitionBatchSampler(pairs.partition, **options)
        return self._loader(
            pairs,
            batch_sampler=self._sampler,
            collate_fn=self.data_collator,
            persistent_workers=self.args.dataloader_persistent_workers,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The loader of evaluation batches, in the dataset's order and without augmentation."""
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, str):
            eval_dataset = cast(dict, self.eval_dataset)[eval_dataset]
        if eval_dataset is None:
            raise ValueError("evaluation needs an eval_dataset")
        pairs = _pair_datasets(eval_dataset)
        batches = EvaluationBatches(len(pairs), self.args.eval_batch_size, self.args.world_size)
        return self._loader(pairs, batch_sampler=batches, collate_fn=self.eval_collator)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """The same, for `predict`."""
        return self.get_eval_dataloader(test_dataset)

    def _loader(self, pairs: PairDataset | StreamedBatches, **kwargs: Any) -> DataLoader:
        loader = DataLoader(
            pairs,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.accelerator.is_available(),
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
            **kwargs,
        )
        if isinstance(pairs, StreamedBatches):
            # Each process reads a part of its own: accelerate brings it to the device and shares out nothing.
            return prepare_data_loader(
                loader,
                self.args.device,
                num_processes=1,
                process_index=0,
                put_on_device=True,
                dispatch_batches=False,
                non_blocking=self.accelerator.non_blocking,
            )
        loader = self.accelerator.prepare(loader)
        if self.args.world_size > 1:
            # A batch is as long as its sampler wants it: accelerate would fill up shorter ones with rows seen before.
            cast(Any, loader.batch_sampler).batch_size = None
        return loader

    # Epochs of different lengths: a phase with more partitions takes more batches to see the largest one through -----

    def _updates_in_epoch(self, epoch: int) -> int:
        return math.ceil(self._batches_in_epoch(epoch) / self.args.gradient_accumulation_steps)

    def _batches_in_epoch(self, epoch: int) -> int:
        """Batches that this process takes in an epoch."""
        return self._sampler.num_batches(epoch) // self.args.world_size

    def set_initial_training_values(self, args: TrainingArguments, dataloader: DataLoader) -> tuple:
        _, per_epoch, num_examples, _, total_batch, steps_in_epoch, _ = super().set_initial_training_values(
            args, dataloader
        )
        whole, part = divmod(args.num_train_epochs, 1)
        max_steps = sum(self._updates_in_epoch(epoch) for epoch in range(int(whole)))
        max_steps += math.ceil(part * self._updates_in_epoch(int(whole)))
        if args.max_steps > 0:
            max_steps = args.max_steps
        epochs, steps = 0, 0
        while steps < max_steps:
            steps += self._updates_in_epoch(epochs)
            epochs += 1
        return epochs, per_epoch, num_examples, max_steps * total_batch, total_batch, steps_in_epoch, max_steps

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        super()._init_training_state(*args, **kwargs)
        epoch, steps = 0, self.state.global_step
        while steps >= self._updates_in_epoch(epoch):
            steps -= self._updates_in_epoch(epoch)
            epoch += 1
        skipped = 0 if self.args.ignore_data_skip else steps * self.args.gradient_accumulation_steps
        if isinstance(self._sampler, StreamedBatches):
            self._sampler.skip(epoch, skipped)
        return epoch, skipped

    def _run_epoch(  # type: ignore[override]
        self, *, epoch: int, steps_in_epoch: int, num_update_steps_per_epoch: int, **kwargs: Any
    ) -> None:
        self._sampler.set_epoch(epoch)
        self.train_collator.set_epoch(epoch)
        active = self._sampler.active(epoch)
        if active != self._active or epoch == 0:
            logger.info(self._sampler.describe(epoch))
            for exception in self._sampler.exceptions(epoch):
                logger.warning(f"epoch {epoch}: {exception}")
        self._active = active
        super()._run_epoch(
            epoch=epoch,
            steps_in_epoch=self._batches_in_epoch(epoch),
            num_update_steps_per_epoch=self._updates_in_epoch(epoch),
            **kwargs,
        )

    # Loss ------------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """
        The partitioned loss of a batch; across processes, of the global batch with negatives from all of them.

        The value is this process's share times the number of processes, since gradients are averaged over them.
        """
        pairs = {name: inputs[name] for name in PAIR_COLUMNS}
        towers = {name: value for name, value in inputs.items() if name not in pairs}
        outputs = model(**towers, chunk_size=self.args.gradient_cache_chunk_size if model.training else None)
        gather = RowGatherer(len(outputs.image_embeds), outputs.image_embeds.device)
        result = pacl_loss(
            outputs.image_embeds,
            outputs.text_embeds,
            **pairs,
            temperature=self.temperature,
            active=self._active if model.training else None,
            gather=gather if world_size() > 1 else None,
            offset=gather.offset,
        )
        self._meters.setdefault("train" if model.training else "eval", PartitionMeter()).add(result)
        loss = result.loss * world_size()
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """`Trainer`'s, where the processes' parts of a batch may be of uneven length."""
        self.gather_function = gather_rows
        self._meters.pop("eval", None)
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple:
        """Loss of an evaluation batch; with it both embeddings and, as the label, the partition."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        return loss.detach(), (outputs.image_embeds, outputs.text_embeds), inputs["partition"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each partition's loss and count since the last entry to `Trainer`'s log."""
        for mode, key in (("train", "loss"), ("eval", "eval_loss")):
            if key in logs and mode in self._meters:
                logs |= self._meters.pop(mode).summary("" if mode == "train" else "eval_")
        super().log(logs, start_time)

    # Checkpoints, and the text tower that rests meanwhile ------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """`Trainer`'s; a text tower that is frozen and whose features are ready is out of memory meanwhile."""
        if not self._text_tower_can_rest():
            return super().train(*args, **kwargs)
        self._parked = ParkedTextTower(cast(PACLModel, self.model), str(self.args.output_dir))
        try:
            return super().train(*args, **kwargs)
        finally:
            self._parked.restore()
            self._parked = None

    def _text_tower_can_rest(self) -> bool:
        if self.model_init is not None or not self.args.park_text_tower:
            return False
        evaluated = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        given: list[Any] = [dataset for dataset in (self.train_dataset, *evaluated) if dataset is not None]
        model: Any = self.model
        return model.config.freeze_text and all(dataset.has_text_features for dataset in given)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self._parked is not None and state_dict is not None:  # gathered from several processes, without the tower
            state_dict |= {f"text_model.{name}": tensor for name, tensor in self._parked.tower.state_dict().items()}
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """
        Load a checkpoint's weights into the model being trained.

        transformers saves some towers (ViT among them) under their historical parameter names; `from_pretrained` maps
        them back, while `Trainer` would skip them with no more than a warning.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target: Any = self.model if model is None else model
        weights = type(target).from_pretrained(resume_from_checkpoint).state_dict()
        if self._parked:  # the checkpoint's text tower, which may be another, takes its place
            self._parked.restore()
        target.load_state_dict(weights)
        if self._parked:
            self._parked.park()

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    # FSDP ------------------------------------------------------------------------------------------------------------

    def _wrap_model(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self.is_fsdp_enabled:
            self._help_fsdp(model)
        return super()._wrap_model(model, *args, **kwargs)

    def _help_fsdp(self, model: Any) -> None:
        """What accelerate, which has language models in mind, does not find out of itself."""
        plugin: Any = self.accelerator.state.fsdp_plugin
        if plugin.transformer_cls_names_to_wrap is None:
            # The towers name what is sharded as one; accelerate gives up where a name is not to be found.
            present = {type(module).__name__ for module in model.modules()}
            plugin.transformer_cls_names_to_wrap = sorted(present.intersection(model._no_split_modules))
        if plugin.ignored_modules is None:
            # A scalar cannot be sharded.
            plugin.ignored_modules = [torch.nn.ParameterList([model.logit_scale]).to(self.args.device)]

    # Sharing ---------------------------------------------------------------------------------------------------------

    def create_model_card(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Write PACL's own card beside the model; `push_to_hub` does so too. Arguments as those of `Trainer`."""
        from pacl.hub_cards.trainer_card import write_trainer_card  # cards know all folders; only this line knows them

        if self.is_world_process_zero():
            write_trainer_card(self, **kwargs)

    # Learning rates --------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """`Trainer`'s optimizer, with the projections in groups of their own that have their own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        module: Any = self.model if model is None else model
        projections = {
            id(p)
            for name, p in module.named_parameters()
            if "visual_projection." in name or "text_projection." in name
        }
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in projections]
            if not own:
                continue
            group["params"] = [p for p in group["params"] if id(p) not in projections]
            optimizer.add_param_group({**group, "params": own, "lr": self.args.projection_learning_rate})
        return optimizer


class PartitionMeter:
    """Sums of each partition's loss, pairs and batches between two log entries, kept on the device until asked for."""

    def __init__(self) -> None:
        self.totals = torch.zeros(3, len(Partition))

    def add(self, result: PACLLossOutput) -> None:
        """Take in a batch."""
        batch = torch.stack([result.per_partition.detach(), result.counts, result.counts > 0])
        self.totals = self.totals.to(batch.device) + batch

    def summary(self, prefix: str = "") -> dict[str, float]:
        """Mean loss over the batches that held a partition, and its number of pairs, over all processes."""
        if world_size() > 1:
            # Each process holds its share of the global batch's loss, and the counts of all of it.
            torch.distributed.all_reduce(self.totals[0])
        entries: dict[str, float] = {}
        for p, (loss, pairs, batches) in zip(Partition, self.totals.t().tolist(), strict=True):
            if batches:
                entries[f"{prefix}loss_{p.name.lower()}"] = loss / batches
                entries[f"{prefix}pairs_{p.name.lower()}"] = int(pairs)
        return entries


def _pair_datasets(dataset: Any) -> Any:
    """Wrap an evaluation dataset, or each of several."""
    if dataset is None or isinstance(dataset, PairDataset):
        return dataset
    if isinstance(dataset, dict):
        return {name: _pair_datasets(part) for name, part in dataset.items()}
    if isinstance(dataset, (StreamedPairs, datasets.IterableDataset)):
        raise TypeError(
            "only training streams, from StreamedPairs(stream, counts); to evaluate, take rows into memory: "
            "datasets.Dataset.from_list(list(stream.take(2000)), features=stream.features)"
        )
    return PairDataset(dataset)
