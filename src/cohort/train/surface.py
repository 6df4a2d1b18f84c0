"""Methods and attributes of transformers' Trainer that scripts use, on the trainers of this package."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer as TransformersTrainer
from transformers.trainer_pt_utils import get_learning_rates, get_num_trainable_parameters, log_metrics, metrics_format
from transformers.trainer_pt_utils import save_metrics as write_metrics
from transformers.trainer_pt_utils import save_state as write_state
from transformers.trainer_utils import TrainOutput as TrainOutput

from cohort.config import TrainingConfig
from cohort.policy import ranks
from cohort.train.callbacks import Callbacks, RunState, Schedule
from cohort.train.loop import Loop
from cohort.train.output.card import add_to_card
from cohort.train.output.hub import push_output
from cohort.types import UserError
from cohort.world import rank

log = logging.getLogger("cohort")

PRIVATE = """
_calculate_rewards _compute_loss _generate _generate_and_score_completions _generate_single_turn _prepare_dataset
_get_per_token_logps_and_entropies _get_per_token_logps _get_last_hidden_state _prepare_inputs _get_train_sampler
_set_signature_columns_if_needed _get_eval_sampler get_batch_loss_metrics dpo_loss concatenated_forward tokenize_row
process_row get_batch_logps compute_ref_log_probs generate_from_model_and_ref compute_liger_loss get_high_entropy_mask
"""
"""Methods of TRL's trainers that its users override, beside those of transformers' Trainer."""


OF_SCRIPTS = {"predict", "hyperparameter_search", "get_test_dataloader"}
"""Methods that transformers' Trainer does not call while it trains or evaluates: a subclass's are for its script."""
BOOKKEEPING = {"create_model_card", "init_hf_repo", "num_examples", "floating_point_ops", "store_flos", "end"}
"""Methods that transformers' Trainer calls and that change neither training nor evaluation."""


def require_called(kind: type, own: type) -> None:
    """Raise UserError where a subclass overrides a method by which transformers' or TRL's trainers train or evaluate
    and that is not called here; warn of another that is not. `own`: the trainer of this package it derives from."""
    theirs = {name for name in dir(TransformersTrainer) if not name.startswith("__")} | set(PRIVATE.split())
    for each in kind.__mro__[: kind.__mro__.index(own)]:
        if each.__module__.startswith("cohort."):
            continue
        unknown = [name for name in vars(each) if name in theirs - OF_SCRIPTS and not hasattr(own, name)]
        if changing := [name for name in unknown if name not in BOOKKEEPING]:
            raise UserError(
                f"{_overrides(each, changing)}: batches are packed and the loss is formed in closed form. "
                "docs/new-method.md says how to change what is learned, docs/rewards.md how to reward; callbacks "
                "(on_step_end, on_evaluate, ...) see the run. A method of your own needs another name"
            )
        if unknown:
            log.warning("%s: only your own code can call it", _overrides(each, unknown))


def _overrides(kind: type, names: list[str]) -> str:
    return f"{kind.__name__} overrides {', '.join(names)}, which {'is' if len(names) == 1 else 'are'} never called here"


def tag(model: Any, method: str) -> None:
    """Add the tags to a model that TRL's trainers add, and ours: `model.push_to_hub` writes them into its card."""
    if hasattr(model, "add_model_tags"):
        model.add_model_tags(["cohort", "trl", method])


class Accelerator:
    """The part of `trainer.accelerator` that scripts use."""

    def __init__(self, device: Any):
        self.device = device
        self.is_main_process = self.is_local_main_process = ranks.is_main()
        self.num_processes, self.process_index = ranks.count(), rank()

    def print(self, *values: Any, **settings: Any) -> None:
        """print, on the main process only."""
        if self.is_main_process:
            print(*values, **settings)

    def wait_for_everyone(self) -> None:
        """Wait until every rank is here."""
        ranks.gather(None, "wait_for_everyone")

    def unwrap_model(self, model: Any, **_: Any) -> Any:
        """The model itself: nothing is wrapped here."""
        return model


class Surface:
    """What both trainers have of transformers' Trainer. `log_metrics`, `save_metrics` and `save_state` are its own."""

    args: TrainingConfig
    loop: Loop
    state: RunState
    compute_metrics: Any = None

    log_metrics = log_metrics
    metrics_format = staticmethod(metrics_format)
    get_num_trainable_parameters = get_num_trainable_parameters
    get_learning_rates = get_learning_rates

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write {split}_results.json, and with `combined` all_results.json, in output_dir."""
        write_metrics(self, split, metrics, combined)

    def save_state(self) -> None:
        """Write trainer_state.json in output_dir."""
        write_state(self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add a row to log_history and call on_log. Called for each row that is due; a subclass may add to it."""
        self.loop.callbacks.log(logs)

    @property
    def callback_handler(self) -> Callbacks:
        return self.loop.callbacks

    @property
    def control(self) -> Any:
        return self.loop.callbacks.control

    @property
    def optimizer(self) -> Any:
        return self.loop.updater.optimizer

    @property
    def lr_scheduler(self) -> Schedule:
        return Schedule(self.optimizer)

    def add_callback(self, callback: Any) -> None:
        """A callback, or its class, with transformers' on_* methods."""
        self.loop.callbacks.add_callback(callback)  # type: ignore[no-untyped-call]

    def pop_callback(self, callback: Any) -> Any:
        """Remove a callback, or the first of a class, and return it."""
        return self.loop.callbacks.pop_callback(callback)  # type: ignore[no-untyped-call]

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback, or the first of a class."""
        self.loop.callbacks.remove_callback(callback)  # type: ignore[no-untyped-call]

    def is_world_process_zero(self) -> bool:
        return ranks.is_main()

    def is_local_process_zero(self) -> bool:
        return ranks.is_main()

    def push_to_hub(
        self,
        commit_message: str = "Upload the model",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        dataset_name: str | Sequence[str] | None = None,
        tags: str | Sequence[str] | None = None,
    ) -> str:
        """Upload the saved model in output_dir as `hub_model_id` (default: output_dir's name); returns its address. The
        card gets `dataset_name` and `tags`. It always waits for the upload, whatever `blocking` is."""
        self.loop.callbacks.call("on_push_begin")
        folder = Path(self.args.output_dir)
        if dataset_name or tags:
            add_to_card(folder, _listed(dataset_name), _listed(tags))
        return push_output(self.args, commit_message, private, token=token, revision=revision)

    @property
    def entropy_coef(self) -> float:
        """The weight of the entropy bonus now."""
        weight = getattr(self.loop.updater, "entropy", None)
        return 0.0 if weight is None else weight.state.get("entropy_coef", weight.constant)

    @property
    def aux_loss_enabled(self) -> bool:
        """Whether the loss has the term that balances a mixture's experts."""
        return bool(getattr(self.loop.updater, "balance_coef", 0.0))

    def train_output(self) -> TrainOutput:
        """What train() returns: steps, mean loss and speed of the run."""
        return TrainOutput(self.state.global_step, self.loop.summary["train_loss"], self.loop.summary)


def _listed(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])
