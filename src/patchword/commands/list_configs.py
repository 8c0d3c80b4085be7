"""The sub-command `configs`: it lists the packaged configurations."""

from __future__ import annotations

import argparse

from patchword.commands.config_files import find_config, packaged_configs
from patchword.commands.options import Parser


def parser() -> argparse.ArgumentParser:
    """The options."""
    about = "List the packaged configurations. They are found by these names from any folder."
    return Parser("configs", description=about)


def main(arguments: list[str]) -> None:
    """Print the name of each packaged configuration, and the first line of its description."""
    parser().parse_args(arguments[1:])
    names = packaged_configs()
    width = max(map(len, names))
    for name in names:
        first = find_config(name).read_text(encoding="utf-8").partition("\n")[0]
        print(f"{name:<{width}}  {first.removeprefix('#').strip() if first.startswith('#') else ''}".rstrip())
