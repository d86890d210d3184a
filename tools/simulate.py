"""The `simulate` verb: settings in which the production planner meets baselines and optima."""

import argparse
import importlib

__all__ = ["SETTINGS", "add_arguments", "run"]

# setting: (module with add_arguments and run, one line of help)
SETTINGS: dict[str, tuple[str, str]] = {
    "paper": (
        "tools.simulation.paper_table",
        "one layer, its indivisible blocks and random devices of arXiv 2505.02533",
    ),
    "load": (
        "tools.simulation.load_table",
        "boards whose load changes, under every policy, with resident and with moved weights",
    ),
    "replan": (
        "tools.simulation.replan_speed",
        "how long a re-plan takes with many agents, with plenty and with scarce memory",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of `headwise simulate`, each with options of its own."""
    settings = parser.add_subparsers(dest="setting", required=True, metavar="SETTING")
    for name, (module_name, text) in SETTINGS.items():
        module = importlib.import_module(module_name)
        setting = settings.add_parser(name, help=text, description=f"{text.capitalize()}.")
        module.add_arguments(setting)
        setting.set_defaults(run_setting=module.run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen setting and return its exit code."""
    return int(args.run_setting(args))
