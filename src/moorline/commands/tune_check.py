"""A glance at a tuned model: a few prompts, asked before and after."""

import logging
from typing import Any

from ..audit import Audit, AuditSettings, audit
from ..audit.suites import Suite
from ..chat.chat_model import ChatModel
from ..errors import InputError
from ..method.adapters import aligned, is_adapted
from ..trainer import STRTrainer
from .anchors_file import check_apart
from .default_suites import default_suites
from .phases import phase
from .run_file import Check, Run

_log = logging.getLogger(__name__)
_TOKENS = 64  # a refusal shows in its first sentence


def checked(trainer: STRTrainer, run: Run) -> Check | None:
    """How many harmful prompts a tuned model refuses and harmless ones it answers.

    With an adapter the aligned model is asked too, by switching it off. It is a glance and no
    audit: few prompts, put plainly, no intervals.

    Args:
        trainer: After its training.
        run: Its record; `check_prompts` of its settings says how many prompts of each kind.

    Returns:
        None where none are to be asked, or where several processes hold the model together.
    """
    num = run.settings["check_prompts"]
    if not num:
        return None
    if trainer.accelerator.num_processes > 1:
        _log.warning("`check_prompts` asks nothing where several processes train.")
        return None
    suites = [each.limited(num) for each in default_suites(run.weights_from)]
    try:
        check_apart(run.settings["output_dir"], suites)
    except InputError:
        _log.warning("`check_prompts` asks nothing: its prompts are among the anchors.")
        return None
    _log.info("Asking %d prompts of each kind.", num)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    chat = ChatModel(model, trainer.processing_class)  # pyright: ignore[reportArgumentType]
    before, hidden = None, trainer.args.disable_tqdm
    after = _asked("Checking", chat, suites, hidden)
    if is_adapted(model):
        with aligned(model):
            before = _asked("Checking the aligned model", chat, suites, hidden)
    refused, answered = after.rate("harmful", "refused"), after.rate("harmless", "complied")
    return Check(
        harmful=refused.num, refused=refused.count, harmless=answered.num, answered=answered.count,
        refused_before=None if before is None else before.rate("harmful", "refused").count,
        answered_before=None if before is None else before.rate("harmless", "complied").count,
    )  # fmt: skip


def _asked(what: str, chat: ChatModel, suites: list[Suite], hidden: bool | None) -> Audit:
    with phase(what, hidden=hidden) as tell:
        return audit(chat, suites, AuditSettings(max_new_tokens=_TOKENS), progress=tell)
