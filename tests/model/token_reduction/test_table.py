"""Rules in recipes and on the command line."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from vlpress.model.token_reduction.divprune import DivPrune
from vlpress.model.token_reduction.duplicates import Duplicates
from vlpress.model.token_reduction.random_tokens import Random
from vlpress.model.token_reduction.rule import ReductionRule
from vlpress.model.token_reduction.table import METHODS, parse_rule, read_rule

RULES = (Duplicates(), Duplicates(threshold=1.5), DivPrune(keep=0.5), Random(keep=1, seed=7))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.text)
def test_rules_survive_both_forms(rule: ReductionRule) -> None:
    assert read_rule(rule.to_dict(), "x", "reduce") == rule
    assert parse_rule(rule.text) == rule


def test_defaults_may_be_left_out() -> None:
    assert parse_rule("duplicates") == Duplicates(threshold=0.98)
    assert parse_rule("random:keep=0.25") == Random(keep=0.25, seed=0)
    assert set(METHODS) == {"duplicates", "divprune", "random"}


SELECT = """
import torch
from vlpress.model.token_reduction.rule import Frame
from vlpress.model.token_reduction.table import parse_rule
features = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).repeat(12, 1)
features += 0.3 * torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
frame = Frame(features, 6, 8, "abc")
rules = ("duplicates:threshold=0.6", "divprune:keep=0.4", "random:keep=0.4,seed=2")
chosen = [parse_rule(rule).select(frame).tolist() for rule in rules]
"""


def test_another_process_selects_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{SELECT}print(chosen)"], check=True, capture_output=True, text=True
    )
    here: dict[str, Any] = {}
    exec(SELECT, here)
    assert done.stdout.strip() == str(here["chosen"])
    assert [0 < len(kept) < 48 for kept in here["chosen"]] == [True] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dart", r"--reduce dart: reduce.method is 'dart'; allowed: duplicates, divprune, random"),
        ("divprune", r"--reduce divprune: reduce.keep is missing; it is required"),
        ("divprune:keep=0", r"reduce.keep is 0; allowed: a number above 0, at most 1"),
        ("divprune:keep=1.5", r"reduce.keep is 1.5; allowed: a number above 0, at most 1"),
        ("divprune:keep=half", r"reduce.keep is 'half'; allowed: a number above 0, at most 1"),
        ("random:keep=0.5,seed=-1", r"reduce.seed is -1; allowed: a whole number, at least 0"),
        ("duplicates:threshold=0", r"reduce.threshold is 0; allowed: a number above 0"),
        ("duplicates:keep=0.5", r"unknown key 'keep'; allowed: threshold"),
        ("random:keep", r"'random:keep' has no value for 'keep'; allowed: METHOD or METHOD:KEY="),
    ],
)
def test_bad_text_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_rule(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", ["divprune", None, {"keep": 0.5}, 3])
def test_data_without_a_method_are_refused(data: object) -> None:
    with pytest.raises(ValueError, match=r"^recipe: a.reduce is .*; allowed: a table with the key"):
        read_rule(data, "recipe", "a.reduce")
    with pytest.raises(ValueError, match=r"a.reduce.method is \['random'\]; allowed: duplicates"):
        read_rule({"method": ["random"]}, "recipe", "a.reduce")
