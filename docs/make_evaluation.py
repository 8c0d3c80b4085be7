"""Write the tables of docs/evaluation.md (data sets, protocols, definitions of metrics) from the suites.

    python docs/make_evaluation.py

A test checks that the page equals the output of this script.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from jsonargparse import ArgumentParser

from patchword.report.definition import flatten
from patchword.suites import Suite

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "evaluation.md"
BEGIN, END = "<!-- suites -->\n", "<!-- /suites -->\n"


def suites() -> dict[str, Suite]:
    """The suite of each configuration in configs/suites, by file name. No data is read."""
    found = {}
    for path in sorted((ROOT / "configs" / "suites").glob("*.yaml")):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        data["init_args"] = {"root": ".", **data.get("init_args", {})}
        parser = ArgumentParser()
        parser.add_subclass_arguments(Suite, "data")
        found[path.stem] = parser.instantiate(parser.parse_object({"data": data})).data
    return found


def tables() -> str:
    """A table with one row per configuration, then the definitions of the metrics. Equal lists are written once."""
    lines = [
        "| configuration | data set | logged as | options that change the metrics |",
        "| --- | --- | --- | --- |",
    ]
    lists: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, suite in suites().items():
        options = ", ".join(f"{key}: {value}" for key, value in flatten(suite.protocol()).items() if value is not None)
        link = f"[{name}.yaml](../configs/suites/{name}.yaml)"
        lines.append(f"| {link} | {suite.data_set} | `{suite.key}` | {_cell(options)} |")
        lists.setdefault(tuple(suite.definitions.items()), []).append(name)
    lines += ["", "### Metrics", "", "If the chance level of a metric is known, it is reported as `chance_<name>`."]
    for definitions, names in lists.items():
        lines += ["", f"**{', '.join(names)}**", "", "| metric | definition |", "| --- | --- |"]
        lines += [f"| `{metric}` | {_cell(text)} |" for metric, text in definitions]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page() -> str:
    """The page with updated tables."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
