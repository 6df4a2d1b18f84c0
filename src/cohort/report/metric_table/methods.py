"""Metrics of single methods, of iterations, guards, reward models and evaluation."""

from __future__ import annotations

from cohort.report.metric_table.record import Metric, Section

CRITIC = Section(
    "PPO's critic",
    "",
    (
        Metric(
            "objective/kl",
            "Mean over completions of the sum over tokens of log pi_old - log ref, the KL that `kl_coef` puts into "
            "the reward. Only where `kl_coef` is above 0.",
            "nats a completion",
            "0 at first, grows slowly",
            "Tens: raise `kl_coef`, lower `learning_rate`.",
        ),
        Metric(
            "critic/loss",
            "max((V - R)^2, (clip(V) - R)^2) / 2, V clipped to `cliprange_value` around its value at sampling; "
            "weighted over tokens as the policy's loss is.",
            "reward^2",
            "falls",
            "Does not fall: raise `critic_learning_rate`.",
        ),
        Metric(
            "critic/explained_variance",
            "1 - Var(R - V) / Var(R) over tokens: R the returns, V the values at sampling. 1: perfect; 0: no better "
            "than a constant; 0 too where all returns are equal.",
            "up to 1",
            "rises from 0",
            "Negative or 0 for long: raise `critic_learning_rate`; with few prompts a group's mean (GRPO) is better.",
        ),
        Metric(
            "critic/clip_fraction",
            "Fraction of tokens whose value has moved more than `cliprange_value` from that at sampling, towards the "
            "return: they have no gradient.",
            "0 to 1",
            "below about 0.2",
            "Lower `critic_learning_rate`, or raise `cliprange_value`: it is in units of the reward.",
        ),
        Metric(
            "critic/grad_norm critic/update_skipped",
            "As `grad_norm` and `update_skipped`, of the critic; of its head alone where the backbone is the policy's.",
            "-",
            "as there",
        ),
        Metric("seconds/values", "Time of the critic's forward pass over the batch.", "s", "steady"),
    ),
)
PREFERENCES = Section(
    "DPO",
    "Means over the pairs of the step, before its update. The implicit reward of a completion is beta log(pi / ref).",
    (
        Metric(
            "rewards/chosen rewards/rejected",
            "Implicit rewards of chosen and rejected completions.",
            "nats times beta",
            "0 at first; `rejected` falls",
            "Both fall far: lower `learning_rate`, raise `beta`, or `loss_type: apo_zero`.",
        ),
        Metric("rewards/margins", "`rewards/chosen` less `rewards/rejected`.", "nats times beta", "0 at first, rises"),
        Metric(
            "rewards/accuracies",
            "Fraction of pairs with a margin above 0. At the first step policy and reference are equal: any value.",
            "0 to 1",
            "rises above 0.5",
            "1.0 soon, with a large margin: overfitting; fewer steps, `label_smoothing`. 0.5: pairs without a pattern.",
        ),
        Metric(
            "logps/chosen logps/rejected",
            "Log-probabilities of the completions under the policy, summed over tokens.",
            "nats a completion",
            "`chosen` does not fall much",
            "It falls: see `rewards/chosen`.",
        ),
    ),
)
DISTILLATION = Section(
    "Distillation",
    "",
    (
        Metric(
            "teacher/kl",
            "Mean over the batch's tokens of log pi - log teacher on the policy's samples: an estimate of KL(policy "
            "|| teacher). A batch's may be negative by chance.",
            "nats a token",
            "falls towards 0",
            "Flat: raise `learning_rate`; check that the teacher knows the prompts' format.",
        ),
        Metric("seconds/teacher", "Time of the teacher's forward pass over the batch.", "s", "steady"),
    ),
)
ITERATIONS = Section(
    "Iterations and refits",
    "A refit writes its `reward_model/...` in a row of its own, after the step's.",
    (
        Metric("iteration", "Number of the iteration, from 0; with `iterations` above 1.", "-", "counts up"),
        Metric(
            "num_completions",
            "Completions sampled so far; with iterations, refits, reward models, `gold_reward` or `sync_ref_model`.",
            "completions",
            "counts up",
        ),
        Metric(
            "reward_model/new reward_model/history",
            "New samples of the refit, and samples of earlier ones that it saw again (`replay_share` of all).",
            "samples",
            "new above 0",
            "0 new: with `loss_type: preference`, no group had a right and a wrong completion.",
        ),
        Metric(
            "reward_model/loss reward_model/accuracy reward_model/grad_norm",
            "Of a refit: means over the steps of its last pass, as for a reward model.",
            "as there",
            "accuracy above 0.5, loss falls from refit to refit",
            "More samples for each refit, a lower `learning_rate` in `reward_model_refit`.",
        ),
        Metric("seconds/refit", "Time of the refit.", "s", "steady"),
    ),
)
GUARDS = Section(
    "Guards",
    "`guard/{name}/...` watch a reward model during the run and warn ([reward-models.md](reward-models.md)); the "
    "others need `gold_reward`.",
    (
        Metric(
            "guard/{name}/drift",
            "Mean of the batch's scores less that of the validation set (of the first batch where none is known), in "
            "standard deviations of the latter.",
            "std",
            "-3 to 3",
            "The policy writes what the model was not trained on: `reward_model_refit`, higher `beta`.",
        ),
        Metric(
            "guard/{name}/outside",
            "Fraction of the batch's scores over 3 such standard deviations away from that mean.",
            "0 to 1",
            "below 0.25",
            "As above.",
        ),
        Metric(
            "guard/{name}/spread",
            "Standard deviation of the batch's scores over the validation set's.",
            "-",
            "above 0.1",
            "The model no longer tells completions apart: refit it, or stop.",
        ),
        Metric(
            "guard/{name}/length_correlation",
            "Pearson's r of score and length in tokens, each less its group's mean.",
            "-1 to 1",
            "-0.7 to 0.7",
            "The reward pays for length: another model, reward `overlong`.",
        ),
        Metric(
            "guard/gold guard/proxy",
            "Mean of the gold reward, and weighted sum of the means of the rewards that are learned from.",
            "reward",
            "rise together",
            "Gold falls while the proxy rises: over-optimisation. Stop there, refit, or raise `beta`.",
        ),
        Metric(
            "guard/kl",
            "Mean over completions of the summed log pi - log start, start being the model the run began with.",
            "nats a completion",
            "0 at first, grows slowly",
            "See `kl`.",
        ),
        Metric(
            "guard/overoptimized_from",
            "Step from which gold fell while the proxy rose; absent before that is seen.",
            "step",
            "absent",
            "Take a checkpoint from before it; `stop_on_overoptimization: true` stops there.",
        ),
    ),
)
REWARD_MODELS = Section(
    "Reward models",
    "Training of a reward model has the metrics of every step, but for `entropy` and `aux_loss`, and this one. "
    "`num_tokens` counts the tokens of its texts.",
    (
        Metric(
            "accuracy",
            "Fraction of pairs whose chosen text has the higher score; of texts or steps whose score has the sign of "
            "the label (above 0 for labels above 0.5). Not with squared errors. Before the update.",
            "0 to 1",
            "rises above 0.5",
            "Stays: raise `learning_rate`, check the labels. 1.0 while `eval/accuracy` stays lower: overfitting; "
            "`early_stopping_patience`.",
        ),
        Metric(
            "margin",
            "Of pairs: the chosen text's score less the rejected one's, before the update.",
            "score",
            "rises",
            "Grows without end: `center_rewards_coefficient`, fewer steps.",
        ),
        Metric(
            "min_reward mean_reward max_reward",
            "Of pairs: the least, mean and greatest score of the step's texts.",
            "score",
            "around 0",
            "The mean drifts away: `center_rewards_coefficient`.",
        ),
    ),
)
EVALUATION = Section(
    "Evaluation",
    "Rows of an evaluation have `step`, `epoch` and these. Methods with `reward_funcs` sample completions of the "
    "held-out problems: one, greedy, unless `num_generations_eval` and `eval_temperature` say otherwise. Without "
    "rewards, SFT and DPO measure the loss, distillation the KL to the teacher. 95% intervals: `cohort eval`.",
    (
        Metric("eval/reward", "Mean total reward of the completions, by weights and clip.", "reward", "rises"),
        Metric(
            "eval/{name}",
            "Mean of one reward function's scores, as it returned them, over the completions it applies to. "
            "`eval/accuracy` is the fraction of right completions; in a reward model's run, `accuracy` on held-out "
            "data.",
            "score",
            "rises, by more than chance: 100 problems at 50% are known to 10 points",
            "Flat while `reward` rises: overfitting to few prompts, or another format in the held-out data.",
        ),
        Metric(
            "eval/{name}/std eval/loss/std",
            "Standard deviation (ddof 1) over the held-out examples, of a problem's mean over its completions: the "
            "mean's standard error is this over the square root of `eval/samples`.",
            "as the mean",
            "-",
        ),
        Metric(
            "eval/{name}/pass@{n}",
            "Fraction of problems of which at least one of the n completions has a positive score; with "
            "`num_generations_eval` n above 1.",
            "0 to 1",
            "does not fall",
            "Falls while the mean rises: the policy loses variety. See `entropy`; method `pass_at_k`.",
        ),
        Metric(
            "eval/samples",
            "Problems measured; in a reward model's run, held-out pairs, texts or labelled solutions.",
            "problems",
            "100 or more",
            "Few: differences below 1 / sqrt(problems) are noise. Raise `eval_samples`.",
        ),
        Metric(
            "eval/completions/mean_length eval/completions/min_length eval/completions/max_length "
            "eval/completions/mean_terminated_length eval/completions/min_terminated_length "
            "eval/completions/max_terminated_length eval/completions/clipped_ratio",
            "As `completions/...`, of the held-out completions.",
            "tokens; 0 to 1",
            "as there",
        ),
        Metric(
            "eval/loss",
            "SFT: mean over demonstrations of the mean negative log-likelihood of their trained tokens. DPO: mean "
            "loss of a pair. Reward models: mean loss of a pair, text or step.",
            "nats",
            "falls",
            "Rises while `loss` falls: overfitting. Fewer steps, a lower `learning_rate`, more data.",
        ),
        Metric(
            "eval/rewards/accuracies eval/rewards/margins eval/rewards/chosen eval/rewards/rejected",
            "Of DPO: as `rewards/...`, on held-out pairs.",
            "0 to 1; nats times beta",
            "accuracies and margins rise",
        ),
        Metric(
            "eval/logps/chosen eval/logps/rejected",
            "Of DPO: as `logps/...`, on held-out pairs.",
            "nats a completion",
            "as there",
        ),
        Metric(
            "eval/margin eval/min_reward eval/mean_reward eval/max_reward",
            "Of a reward model on pairs: as `margin` and its neighbours, on held-out pairs.",
            "score",
            "as there",
        ),
        Metric("eval/teacher_kl", "Of distillation: `teacher/kl` on held-out prompts.", "nats a token", "falls"),
        Metric(
            "eval/score/mean eval/score/std",
            "Of a reward model: mean and standard deviation (ddof 0) of its scores, before any sigmoid. The guards "
            "compare with the last ones.",
            "score",
            "std above 0",
        ),
        Metric("seconds/eval", "Time of sampling and scoring.", "s", "small beside the steps between evaluations"),
    ),
)
