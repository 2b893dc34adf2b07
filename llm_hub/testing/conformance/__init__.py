"""The conformance kit: rules that every plugin is held to, and what runs them. See docs/reference/conformance.md.

Authors inherit `llm_hub.testing.text`, `llm_hub.testing.embedding` and `llm_hub.testing.vision`; this package is what they
are made of.
"""

from __future__ import annotations

from llm_hub.testing.conformance.bench import Bench, Ended, patiently
from llm_hub.testing.conformance.report import Finding, Outcome, Report, Tier, tiers
from llm_hub.testing.conformance.requirements import Requirements
from llm_hub.testing.conformance.rules import (
    SUITE_VERSION,
    Broken,
    Needs,
    NotApplicable,
    Rule,
    RuleBook,
    Suite,
    expect,
    not_here,
)
from llm_hub.testing.conformance.running import check_rule, run_suite

__all__ = [
    "SUITE_VERSION",
    "Bench",
    "Broken",
    "Ended",
    "Finding",
    "Needs",
    "NotApplicable",
    "Outcome",
    "Report",
    "Requirements",
    "Rule",
    "RuleBook",
    "Suite",
    "Tier",
    "check_rule",
    "expect",
    "not_here",
    "patiently",
    "run_suite",
    "tiers",
]
