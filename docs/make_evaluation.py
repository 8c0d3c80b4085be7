"""Write the tables of docs/evaluation.md from the suites themselves: data sets, protocols, definitions.

    python docs/make_evaluation.py

A test compares the page with what this would write.
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
    """A suite for each configuration of configs/suites, by the name of its file; nothing is read."""
    found = {}
    for path in sorted((ROOT / "configs" / "suites").glob("*.yaml")):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))["data"]
        data["init_args"] = {"root": ".", **data.get("init_args", {})}
        parser = ArgumentParser()
        parser.add_subclass_arguments(Suite, "data")
        found[path.stem] = parser.instantiate(parser.parse_object({"data": data})).data
    return found


def tables() -> str:
    """A row for each configuration, then the definition of each number, each list once."""
    lines = [
        "| configuration | data set | logged as | options that change what is measured |",
        "| --- | --- | --- | --- |",
    ]
    lists: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, suite in suites().items():
        options = ", ".join(f"{key}: {value}" for key, value in flatten(suite.protocol()).items() if value is not None)
        link = f"[{name}.yaml](../configs/suites/{name}.yaml)"
        lines.append(f"| {link} | {suite.data_set} | `{suite.key}` | {_cell(options)} |")
        lists.setdefault(tuple(suite.definitions.items()), []).append(name)
    lines += ["", "### The numbers", "", "`chance_<name>` stands beside a number where a guess has a known value."]
    for definitions, names in lists.items():
        lines += ["", f"**{', '.join(names)}**", "", "| number | what it is |", "| --- | --- |"]
        lines += [f"| `{metric}` | {_cell(text)} |" for metric, text in definitions]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page() -> str:
    """The whole page with its tables made anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
