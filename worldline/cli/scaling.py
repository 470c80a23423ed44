"""`worldline scaling`: small runs from which the loss of larger ones follows."""

from __future__ import annotations

import argparse
import sys

from worldline.cli.parser import Verbs, add_verb, emit, recipe


def add_scaling(verbs: Verbs) -> None:
    about = "train a ladder of small models, fit the compute-optimal law, foretell a larger run and check it"
    parser = add_verb(verbs, "scaling", run_scaling, about)
    add = parser.add_argument
    add("--recipe", default="scaling", help="ladder to start from, or a Python file of your own")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="change a value, for example widths=32,64,96")
    add("--seed", type=int, default=None, help="of weights and batches; the recipe's own unless given")
    add("--out", default=None, help="folder of the runs, the report and the plot; what is there already is kept")
    add("--dry-run", action="store_true", help="print the ladder and the time that it takes here, train nothing")


def run_scaling(args: argparse.Namespace) -> None:
    """Read the recipe, apply --set, train what is missing and report."""
    plan = recipe(args.recipe, "scaling")

    from dataclasses import replace

    from worldline.train import scaling
    from worldline.train.plan import plan_dict, plan_overrides

    plan = plan_overrides(plan, args.set)
    if args.seed is not None:
        plan = replace(plan, base=replace(plan.base, seed=args.seed))
    scaling.rungs(plan)  # refuses a ladder that cannot be run
    if args.dry_run:
        return emit(args, plan_dict(plan), scaling.dry_run(plan))
    out = args.out or f"runs/{plan.name}"
    report = scaling.run(plan, out, say=lambda line: print(line, file=sys.stderr, flush=True))
    emit(args, {"out": out, **report.as_dict()}, report.table())
