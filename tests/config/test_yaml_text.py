"""Configurations as people write them, and as nobody should."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohort import GRPOConfig
from cohort.config import read_run
from cohort.config.yaml_text import YamlError, parsed
from cohort.types import UserError

START = "model: m\ndataset: d\nreward_funcs: format\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2020-01-02", "2020-01-02"),
        ("12:30", "12:30"),
        ("1:30:05.5", "1:30:05.5"),
        ("[1, 2.5, true, null, x]", [1, 2.5, True, None, "x"]),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x {c: 1}\nb: {<<: *x, d: 2}", {"a": {"c": 1}, "b": {"c": 1, "d": 2}}),
        ("0x10", 16),
    ],
)
def test_what_a_text_says(text: str, value: Any) -> None:
    assert parsed(text) == value


BOMB = "a0: &a0 [x, x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice"),
        ("a: {b: 1, b: 2}", "line 1: the key 'b' is there twice"),
        ("a: !!int abc", "ValueError: invalid literal"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("[" * 5000, "nested too deeply|expected the node content"),
        ("a: [1", "expected"),
        ("? [1, 2]\n: 3", "line 1: a key is a list or a mapping"),
        (BOMB, r"line 8: more than 20 aliases"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message):
        parsed(text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate: .inf", "`learning_rate` is inf: Input should be a finite number"),
        ("temperature: .nan", "`temperature` is nan: Input should be a finite number"),
        ("max_steps: 0", "`max_steps` is 0: there must be one step at least"),
        ("max_steps: -5", "`max_steps` is -5: Input should be greater than or equal to -1"),
        ("max_steps: true", "`max_steps` is true: it must be a number"),
        ("learning_rate: true", "`learning_rate` is true: it must be a number"),
        ("val_size: false", "`val_size` is false: it must be a number"),
        ("lora_alpha: 0", "`lora_alpha` is 0: Input should be greater than or equal to 1"),
        (f"seed: {10**30}", "`seed` is 10+: "),
        ("seed: -1", "`seed` is -1: Input should be greater than or equal to 0"),
        ("seed: 2020-01-02", "`seed` is '2020-01-02': Input should be a valid integer"),
        ("seed: 1\nseed: 2", "the key 'seed' is there twice"),
    ],
)
def test_values_that_cannot_be_meant(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(START + line + "\n")
    with pytest.raises(UserError, match=message):
        read_run(path)


def test_a_home_folder_and_a_byte_order_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "run.yaml"
    path.write_text(
        "\ufeff" + START.replace(" m", " ~/m").replace(" d", " ~/d") + "output_dir: ~/out\n", encoding="utf-8"
    )
    run, config = read_run(path)
    assert [run.model, run.dataset, config.output_dir] == [str(tmp_path / name) for name in ("m", "d", "out")]
    assert GRPOConfig("~/out").output_dir == str(tmp_path / "out")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*GRPOConfig.model_fields, "model", "dataset", "columns", "reward_funcs", "val_size", "x"])


def reads(text: str, folder: Path) -> None:
    """Whatever a file says, it is a run or a UserError of a length that one can read."""
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        read_run(path)
    except UserError as error:
        assert len(str(error)) < 20_000


MUTATED = given(
    st.dictionaries(KEYS, VALUES, max_size=4),
    st.text(alphabet="&*!{}[]:,-? \n'\"#|>%@`a1.~", max_size=12),
    st.integers(0, 60),
)
QUIET: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def mutated(folder: Path, values: dict[str, Any], noise: str, place: int) -> None:
    text = START
    with suppress(yaml.YAMLError):
        text = yaml.safe_dump({"model": "m", "dataset": "d", "reward_funcs": ["format"], **values}, allow_unicode=True)
    reads(text, folder)
    reads(text[:place] + noise + text[place:], folder)


@settings(max_examples=60, **QUIET)
@MUTATED
def test_any_configuration_is_a_run_or_told(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], noise: str, place: int
) -> None:
    mutated(tmp_path_factory.getbasetemp(), values, noise, place)


@pytest.mark.slow
@settings(max_examples=5000, **QUIET)
@MUTATED
def test_any_configuration_is_a_run_or_told_often(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], noise: str, place: int
) -> None:
    mutated(tmp_path_factory.getbasetemp(), values, noise, place)
