"""Metrics of every row, of every training step, of sampled batches and of the loss."""

from __future__ import annotations

from cohort.report.metric_table.record import Metric, Section

FASTER_REWARDS = "`processes` or `overlap_rewards` ([troubleshooting](troubleshooting.md#slow-rewards))."

EVERY_ROW = Section(
    "Every row",
    "A training step, an evaluation and a refit each write a row of their own; rows of one step have the same `step`.",
    (
        Metric("step", "Optimiser steps done, 0 for an evaluation before the first.", "steps", "counts up"),
        Metric(
            "epoch",
            "Passes over the rows of the data set (prompts, demonstrations or pairs) so far. Prompts that dynamic "
            "sampling draws in place of others are not counted.",
            "passes",
            "grows evenly",
        ),
    ),
)
EVERY_STEP = Section(
    "Every training step",
    "Of all methods and of reward models.",
    (
        Metric(
            "loss",
            "-J before the update: J is the sum of w_t J_t over the step's tokens, with an entropy bonus; "
            "`router_aux_loss_coef` times `aux_loss` is added. SFT, RFT, Online RFT: mean negative log-likelihood (a "
            "wrong completion counts as 0). DPO: mean loss of a pair. Reward models: mean loss of a pair, text or "
            "step. GRPO: at the first update on a batch the ratio is 1 and the advantages of a group sum to 0, so "
            "with `loss_type: grpo` the loss is `beta` times the KL: about 0 at first and slightly positive later. "
            "Its gradient is not 0. PPO: without the critic's loss. Distillation: about `teacher/kl`.",
            "nats, or reward units",
            "SFT, DPO, reward models: falls. GRPO, PPO: near 0, and says nothing about progress",
            "Imitation that does not fall: raise `learning_rate`; see `cohort data show`. GRPO: look at `reward`, not "
            "here.",
        ),
        Metric(
            "grad_norm",
            "Euclidean norm of the gradient of all trained parameters, before it is scaled down to `max_grad_norm`.",
            "-",
            "above 0, without jumps to many times its median",
            "0: no advantage (`frac_reward_zero_std` 1). Jumps: lower `learning_rate` or `max_grad_norm`.",
        ),
        Metric("learning_rate", "Rate of this step, by the schedule.", "-", "as configured"),
        Metric(
            "kl/update",
            "How far the update moved its own batch: mean of (log pi - log pi_old)^2 / 2 over at most 2,048 or so "
            "of its tokens, after the update. Of sampled batches, in the first 5 steps and while the rate rises.",
            "nats a token",
            "below 0.2",
            "Above: lower `learning_rate`.",
        ),
        Metric(
            "num_tokens",
            "Tokens of all batches so far: each group's prompt once and its completions. A batch counts once, however "
            "many updates it serves; groups that dynamic sampling replaced do not count.",
            "tokens",
            "counts up",
        ),
        Metric(
            "tokens_per_second",
            "Tokens of the step's groups, counted as in `num_tokens`, over `seconds/step`. The time includes sampling "
            "and rewarding where the step began with them, so later updates on the same batch show more.",
            "tokens/s",
            "steady",
            "Falls: compare the `seconds/...` of early and late steps, and lengths. `profile: true` shows where time "
            "goes.",
        ),
        Metric(
            "seconds/step",
            "Time of the step: its batch where it made one, and the update. Evaluation and checkpoints are not in it.",
            "s",
            "steady",
        ),
        Metric(
            "seconds/update", "Time of forward and backward passes and optimisers, the critic's too.", "s", "steady"
        ),
        Metric(
            "update_skipped",
            "1 where the gradient was NaN or infinite and nothing was updated; only with `on_nonfinite: skip`.",
            "0 or 1",
            "0",
            "Lower `learning_rate`, bound the rewards, set `max_grad_norm`.",
        ),
        Metric(
            "entropy",
            "Mean entropy of the policy's next-token distribution, -sum p log p over the vocabulary, at the sampling "
            "temperature and before the update. Mean over all sampled tokens; those of completions that the step does "
            "not train (advantage 0, no KL, no entropy bonus) count with -log p, an estimate by their own sampling. "
            "SFT, RFT and DPO: over the batch's completions, at temperature 1.",
            "nats",
            "falls slowly from the model's own (often 0.1 to 1)",
            "Near 0 early: completions become equal. Lower `learning_rate`, raise `temperature` or `epsilon_high`, "
            "set `entropy_coef`. Rises without end: lower `learning_rate` or `entropy_coef`.",
        ),
        Metric(
            "aux_loss",
            "Load-balancing loss of a mixture of experts, E sum_e f_e P_e over E experts: f_e is the fraction of "
            "tokens that have expert e among their top k, P_e the expert's mean probability, both over all layers.",
            "-",
            "near k, `num_experts_per_tok`, its value where all are used alike",
            "Grows: raise `router_aux_loss_coef`.",
        ),
    ),
)
SAMPLES = Section(
    "Sampled batches",
    "Of methods that sample the current policy. A batch that serves several updates repeats its numbers, its seconds "
    "too, in the row of each. They are over everything that was sampled, groups that dynamic sampling replaced "
    "included.",
    (
        Metric(
            "reward",
            "Mean over completions of the total reward: sum of weight times score, clipped to `reward_clip`.",
            "reward",
            "rises, in steps of noise",
            "Flat: [my run does not learn](troubleshooting.md#my-run-does-not-learn). Rises while held-out scores "
            "fall: the reward is gamed; `cohort reward audit`.",
        ),
        Metric(
            "reward_std",
            "Mean over groups of the standard deviation (ddof 1) of the totals within the group; with `scale_rewards: "
            "group` each group's advantages are divided by its own. It is not the standard deviation of all rewards. "
            "Absent with groups of one.",
            "reward",
            "above 0",
            "0: see `frac_reward_zero_std`.",
        ),
        Metric(
            "frac_reward_zero_std",
            "Fraction of groups whose totals are all equal, up to rounding: they teach nothing but the KL term. With "
            "`grpo_process` too it is of the totals, though its advantages come from the steps. Absent with groups of "
            "one.",
            "0 to 1",
            "below about 0.5",
            "Near 1: prompts too hard or too easy, or a reward that is constant. Other prompts, more "
            "`num_generations`, a graded reward, `dynamic_sampling: true`.",
        ),
        Metric(
            "rewards/{name}/mean rewards/{name}/std",
            "Mean and standard deviation (ddof 1) of one reward function's scores, over the completions it applies "
            "to: not weighted, after its own clip, 0 where a gate is closed. `std` is over the batch, not within "
            "groups.",
            "score",
            "mean rises; std above 0",
            "Always 0 or always equal: `cohort reward try` on completions.jsonl shows what it matched.",
        ),
        Metric(
            "rewards/{name}/clipped_ratio rewards/{name}/gated_ratio rewards_clipped_ratio",
            "Fraction of completions whose score a clip changed, whose gate was closed, and whose total `reward_clip` "
            "changed.",
            "0 to 1",
            "clips 0; closed gates become fewer",
            "Clipped scores are equal and teach nothing among themselves: widen the bounds.",
        ),
        Metric(
            "completions/mean_length completions/min_length completions/max_length",
            "Lengths of completions, end token included.",
            "tokens",
            "well below `max_completion_length`",
            "Grows into the limit without more reward: reward `overlong`, `loss_type: dr_grpo`. Shrinks to a few: the "
            "reward pays for short answers.",
        ),
        Metric(
            "completions/mean_terminated_length completions/min_terminated_length completions/max_terminated_length",
            "The same of the completions that ended before the limit; 0 where none did.",
            "tokens",
            "as the lengths of all",
        ),
        Metric(
            "completions/clipped_ratio",
            "Fraction of completions that `max_completion_length` ended.",
            "0 to 1",
            "below about 0.1",
            "Raise the limit; check that the model ends its turn (chat template, end token).",
        ),
        Metric("seconds/generate", "Time of sampling.", "s", "most of the step"),
        Metric(
            "seconds/reward seconds/reward/{name}",
            "Time from the end of sampling until all rewards were there, and of each function's calls. With "
            "`overlap_rewards` the first is only what was waited for.",
            "s",
            "small beside `seconds/generate`",
            FASTER_REWARDS,
        ),
        Metric(
            "{name}/truncated",
            "Fraction of texts over the maximum length of the reward model in the folder of that name; they lose "
            "their beginning.",
            "0 to 1",
            "0",
            "Raise its `max_length`, or shorten completions.",
        ),
        Metric(
            "{name}/unreadable",
            "Fraction of replies of the judge of that name without a score, which count 0 (`unreadable: lowest`).",
            "0 to 1",
            "near 0",
            "Make the rubric ask for `Score: N`; another judge.",
        ),
        Metric(
            "sampling/rounds sampling/frac_kept_groups",
            "Of `dynamic_sampling`: rounds of sampling for the batch; groups with unequal rewards that were found, as "
            "a fraction of the batch.",
            "rounds; 0 to 1",
            "few; 1",
            "At `max_sampling_rounds` and below 1: other prompts.",
        ),
        Metric(
            "steps/reward steps/count",
            "Of process supervision: mean reward of a step; mean number of steps of a completion.",
            "reward; steps",
            "reward rises; count above 1",
            "1 step: `step_separator` does not occur. The count grows without reward: steps are split up.",
        ),
        Metric(
            "reward/greedy seconds/greedy",
            "Of ReMax: mean total of the prompts' greedy completions, which is the baseline; time to sample and score "
            "them.",
            "reward; s",
            "rises",
        ),
    ),
)
RATIOS = Section(
    "Ratio, clip and KL",
    "Of GRPO, its variants and PPO, over the tokens that the step trains (see `entropy`), before the step's update. "
    "The ratio is pi / pi_old, of a token or of a completion (`importance_sampling_level`). At the first update on a "
    "batch it is exactly 1, so with one update for each batch (GRPO's default) the clip never acts.",
    (
        Metric(
            "kl",
            "Mean over tokens of the estimate of KL(policy || reference): k3 = ref/pi - log(ref/pi) - 1, which is "
            "never negative, or `kl_estimator`'s k1, which may be, or k2. Not weighted by `beta` or by the ratio. Not "
            "there with `beta: 0`, nor where the KL is in the reward (PPO, REINFORCE++).",
            "nats a token",
            "0 at first, grows slowly; mostly below 0.1",
            "Over 1: the policy has left the reference. Lower `learning_rate`, raise `beta`.",
        ),
        Metric(
            "kl/max",
            "The largest estimate of one token. k3 grows exponentially where the policy gives a token far less than "
            "the reference does.",
            "nats",
            "below 10",
            "Over 1,000 that token outweighs all others: lower `learning_rate`, or `kl_estimator: k2`.",
        ),
        Metric(
            "ratio/min ratio/max",
            "The smallest and the largest ratio of the step, at most and at least 1.",
            "-",
            "exactly 1 at a batch's first update; then about 0.5 to 2",
            "Far from 1: lower `learning_rate`, or fewer updates on a batch (`num_iterations`, "
            "`steps_per_generation`).",
        ),
        Metric(
            "clip_ratio/low_mean clip_ratio/high_mean clip_ratio/region_mean",
            "Fraction of tokens beyond the lower bound with A < 0, beyond the upper bound with A > 0, and the sum of "
            "both. The bound takes their gradient away (in CISPO it limits it).",
            "0 to 1",
            "0 at a batch's first update; then below about 0.2",
            "As for the ratio. Mostly `high` while entropy falls: raise `epsilon_high`.",
        ),
        Metric(
            "policy_loss",
            "Where there is an entropy bonus, `loss` without it: `loss` + weight * mean entropy of trained tokens.",
            "as `loss`",
            "as `loss`",
        ),
        Metric(
            "entropy_coef",
            "The weight of the entropy bonus; of `use_adaptive_entropy` that of the next step.",
            "-",
            "settles",
            "At `entropy_coef_max`: the target is too high for this model.",
        ),
        Metric(
            "sampling/off_policy_masked",
            "Of `off_policy_mask_threshold`: fraction of tokens in completions that it leaves out.",
            "0 to 1",
            "below about 0.1",
            "Fewer updates on a batch.",
        ),
        Metric(
            "seconds/reference",
            "Time of the reference's forward pass over the batch; 0 where it is known to be the sampler itself.",
            "s",
            "small beside `seconds/generate`",
            "`beta: 0` needs no reference.",
        ),
    ),
)
