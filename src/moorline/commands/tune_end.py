"""How a tuning ends: pushed with a card that says how it was made, its processes apart."""

import gc
from pathlib import Path
from typing import Any

from ..trainer import STRTrainer


def push(trainer: STRTrainer, output: Path, dataset: str | None) -> None:
    """Push to the hub, with our section in the card that TRL makes as it pushes."""
    card_of_trl = trainer.create_model_card

    def card(*args: Any, **kwargs: Any) -> None:
        card_of_trl(*args, **kwargs)
        if trainer.is_world_process_zero():
            from ..report import write_card

            write_card(output)

    trainer.create_model_card = card
    trainer.push_to_hub(dataset_name=dataset)


def leave_the_group(trainer: STRTrainer) -> None:
    """End what the processes share, the DDP wrapper before their group.

    Freed after its group, it takes the group's threads along while it holds Python's lock, for
    which one of these may wait: the process never ends (seen with torch 2.13 and gloo).
    """
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    gc.collect()
    trainer.accelerator.end_training()
