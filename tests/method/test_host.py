"""What a host would do beside is refused by name."""

import pytest
from helpers import lora, moved, plain_trainer, str_trainer
from transformers import TrainingArguments

from moorline import InputError


def test_several_gpus_in_one_process_are_refused(
    make_model, rows, tokenizer, tokens, tmp_path, monkeypatch
):
    """`nn.DataParallel` runs copies of the model, whose safety logits nobody would see."""

    def build():
        return plain_trainer(moved(make_model), rows, tokenizer, tokens, tmp_path)

    build()  # the control
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 2))
    with pytest.raises(InputError, match=r"`nn.DataParallel` hides the model. Launch with"):
        build()
    with pytest.raises(ValueError, match="does not support `nn.DataParallel`"):  # TRL's own words
        str_trainer(make_model(), rows, tokenizer, tokens, tmp_path, lora())
