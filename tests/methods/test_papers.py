"""docs/papers.md: every configuration is accepted, and says nothing that is a default of another name."""

from __future__ import annotations

import re

import pytest
import yaml

from cohort.config import built_in_config
from cohort.formulas.loss_types import LOSS_TYPES
from cohort.methods.table import METHODS
from helpers import ROOT

PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
CONFIGURATIONS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize("values", CONFIGURATIONS, ids=str)
def test_a_papers_configuration_is_accepted(values: dict[str, object]) -> None:
    method = str(values["method"])
    built_in_config(method)(**{key: value for key, value in values.items() if key != "method"})


def test_every_method_and_loss_type_has_its_paper() -> None:
    named = {str(values["method"]) for values in CONFIGURATIONS}
    assert set(METHODS) - named == {"sft"}
    losses = {str(values.get("loss_type", "grpo")) for values in CONFIGURATIONS}
    assert set(LOSS_TYPES) - losses == {"bnpo", "dppo_kl"}  # TRL's own; the other measure of a paper that is there
