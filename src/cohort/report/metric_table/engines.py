"""Metrics of samples by another engine, or by older weights."""

from __future__ import annotations

from cohort.report.metric_table.record import Metric, Section

ENGINES = Section(
    "Other samplers",
    "Of runs whose completions another engine or older weights sampled ([scaling](scaling.md#engines-who-samples)).",
    (
        Metric(
            "sampling/importance_sampling_ratio/mean",
            "Of `vllm_importance_sampling_correction`: mean over tokens of the weight pi_old / pi_sampler, bounded.",
            "-",
            "near 1",
            "Far from 1: the engine samples from other weights, or at another temperature.",
        ),
        Metric(
            "sampling/mismatch_kl",
            "Where that correction is on: mean over tokens of log pi_sampler - log pi_old, an estimate of "
            "KL(sampler || policy).",
            "nats",
            "near 0; with `staleness` above 0 mostly below 0.1",
            "Grows: lower `learning_rate` or `staleness`. High at the first step: the engine has other weights.",
        ),
        Metric(
            "sampling/logp_difference",
            "With `engine: vllm`: between the server's log-probabilities of fixed sequences and the policy's, with the "
            "weights that it was sent; mean over tokens, of several servers the largest.",
            "nats",
            "about 0.01 in bfloat16, 1e-5 in float32",
            "Grows: the server computes something else. Above `max_logp_difference` the run stops.",
        ),
        Metric(
            "sampling/staleness",
            "With `staleness` above 0: updates since the weights that sampled a token, mean over the batch's tokens.",
            "updates",
            "`staleness` times the updates of a batch, less at the start and with `partial_rollouts`",
        ),
        Metric(
            "sampling/continued",
            "With `partial_rollouts`: fraction of completions that several weights sampled.",
            "0 to 1",
            "that of completions longer than `partial_rollouts`",
        ),
        Metric(
            "seconds/wait",
            "With `staleness` above 0: time for which training waited for a batch.",
            "s",
            "near 0",
            "Near `seconds/generate`: sampling is slower than training; more workers, or a larger `staleness` where "
            "only some batches are slow.",
        ),
    ),
)
