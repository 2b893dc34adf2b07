"""The reference page of the conformance kit, made from the rules and the requirements themselves."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llm_hub.testing.conformance.report import Outcome, Tier
from llm_hub.testing.conformance.requirements import Requirements
from llm_hub.testing.conformance.rules import SUITE_VERSION, Needs, Rule, Suite

__all__ = ["markdown"]

_HEAD = f"""\
# Conformance

A plugin conforms when it keeps the rules of this page. They are the same for the plugins of this project and for everybody
else's. Version of the suites: {SUITE_VERSION}. A new mandatory rule comes with a new minor version, and says since when it counts.

## A test module

```text
# tests/test_conformance.py of llm-hub-acme; needs `pip install "llm-hub-core[testing]"`
from llm_hub.testing import FakeVLLM
from llm_hub.testing.text import *


class Requirements(TextRequirements):
    plugin = "acme"
    tools = True
    json_schema = True

    def server(self):
        return FakeVLLM()
```

`pytest` runs every rule as a test of this module: the rule `text.stream.one-end` is `test_text_stream_one_end`. A rule that
does not hold is told by its name, what was seen, and the remedy. Embedding and vision have `llm_hub.testing.embedding` and
`llm_hub.testing.vision`, each in a module of its own.

- The suite is inherited whole: a test that is deleted, overridden or skipped by a mark fails the run (`skipif` on the module is
  for machines that lack what it needs). What a plugin is known to break goes into `known_limits` with a reason (or the override
  is marked `@pytest.mark.xfail(reason=...)`); it is told when it holds after all.
- What is declared and what works must agree: a declared feature that fails is a failure, one that works and is not declared is
  told at the end of the run.
- `pytest --llm-hub-live URL --llm-hub-live-model NAME` runs the module on a real server, and leaves out what needs a misbehaving
  one (or set LLM_HUB_TEST_LIVE_URL and LLM_HUB_TEST_LIVE_MODEL).
- The text suite takes about 12 seconds for a plugin over HTTP, most of it deadlines that pass.

## Without pytest

```python
from llm_hub.testing import FakeVLLM
from llm_hub.testing.conformance import run_suite, tiers
from llm_hub.testing.text import TextRequirements


class Requirements(TextRequirements):
    plugin = "vllm"

    def server(self):
        return FakeVLLM()


report = run_suite(Requirements, only=["text.plugin.loads", "text.answer", "text.stop"])  # all of them without `only`
assert report.ok, str(report)
assert [finding.outcome for finding in report.findings] == ["passed"] * 3
assert report.to_builtins()["tiers"] == ["loads"]  # plain data, for JSON; three rules are not the whole suite
assert tiers([report]) == ["loads"]
```

`run_suite(requirements, live=URL, only=RULES)` gives a `Report` with a `Finding` for each rule; it raises nothing that the plugin does.
`llm_hub.testing.conformance.mutants.caught(requirements, rule)` is for the opposite: that a rule catches a wrong plugin.
"""


def markdown(suites: Sequence[Suite]) -> str:
    """The page, of these suites."""
    shared = set.intersection(*({_name(rule) for rule in suite.rules.values()} for suite in suites))
    parts = [_HEAD, "\n## Outcomes and tiers\n\n"]
    parts.append(_table(("outcome of a rule", "meaning"), ((f"`{one}`", said) for one, said in _members(Outcome))))
    parts.append("\nTiers are computed from the runs, and never claimed:\n\n")
    parts.append(_table(("tier", "meaning"), ((f"*{one}*", said) for one, said in _members(Tier))))
    parts.append("\n## Requirements\n\nWhat the suites know of a plugin; each is set in the subclass.\n")
    parts.append(f"\n### Of every capability\n\n{_properties(Requirements)}")
    parts += [f"\n### Of {suite.capability}\n\n{_properties(suite.requirements)}" for suite in suites]
    parts.append(
        "\n## Rules\n\nWhat a rule needs: "
        + "; ".join(f"*{one}*: {said[0].lower()}{said[1:].rstrip('.')}" for one, said in _members(Needs))
        + ".\n"
    )
    names = ", ".join(f"`{suite.capability}.`" for suite in suites)
    parts.append(f"\n### Of every capability\n\nTheir ids begin with the capability: {names}.\n\n")
    parts.append(_rules([rule for rule in suites[0].rules.values() if _name(rule) in shared], short=True))
    for suite in suites:
        own = [rule for rule in suite.rules.values() if _name(rule) not in shared]
        parts.append(f"\n### Of {suite.capability}\n\n{_rules(own, short=False)}")
    return "".join(parts)


def _name(rule: Rule[Any]) -> str:
    return rule.id.partition(".")[2]


def _rules(rules: Iterable[Rule[Any]], *, short: bool) -> str:
    rows = []
    for rule in rules:
        about = [f"needs {rule.needs}"] if rule.needs is not Needs.ANSWERS else []
        about += [f"feature `{rule.feature}`"] if rule.feature is not None else []
        about += ["first tier"] if rule.loads else []
        says = rule.says + (f" ({', '.join(about)})" if about else "")
        rows.append((f"`{_name(rule) if short else rule.id}`", says, rule.remedy, rule.since))
    return _table(("rule", "it says", "remedy", "since"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _members(kind: type[Any]) -> Iterator[tuple[str, str]]:
    """The members of an enum, each with the text after it."""
    told = dict(_documented(kind))
    for member in kind:
        yield str(member), told.get(member.name, ("", ""))[1] or _MEANINGS.get(str(member), "")


_MEANINGS = {"passed": "It holds.", "failed": "It does not hold."}


def _properties(kind: type[Any]) -> str:
    """The attributes and methods of a class of requirements, with their defaults."""
    rows = [(f"`{name}`", default, said) for name, (default, said) in _documented(kind) if said]
    for name, method in vars(kind).items():
        if inspect.isfunction(method) and name in _ASKED:
            said = " ".join(inspect.cleandoc(method.__doc__ or "").split())
            rows.append((f"`{name}{inspect.signature(method)}`".replace("self, ", "").replace("self", ""), "", said))
    return _table(("property", "default", "meaning"), rows)


_ASKED = ("server", "real_server", "configuration")


def _documented(kind: type[Any]) -> Iterator[tuple[str, tuple[str, str]]]:
    """The attributes of a class that a text follows: each with its default and that text."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for node, after in itertools.pairwise(body):
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            value = node.value if isinstance(node, ast.AnnAssign | ast.Assign) else None
            default = f"`{ast.unparse(value)}`" if value is not None else ""
            yield target.id, (default, " ".join(str(after.value.value).split()))
