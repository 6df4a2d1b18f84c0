"""Uses of a model that train nothing: evaluation, generation, labelling, and scores of a reward model.

`evaluate.evaluate` samples and scores prompts; the trainer calls it too. `loaded_model.LoadedModel` loads a model by
name, encodes prompts and samples; `models.evaluate_model` (`cohort eval`), `generate.Generator` (`cohort generate`) and
`labelling.label_model` (`cohort reward label`) use it. `judging.score_rows` scores rows by a reward
model (`cohort reward eval`), `lm_eval.run_tasks` runs lm-eval's tasks.
"""
