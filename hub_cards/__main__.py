"""The command line: `pacl push RUN --repo_id ORG/NAME --what backbone …` shows what it would send; `--yes` does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .push import WHATS, PushPlan, plan_pushes, push

ABOUT = """\
Show what a push to the Hub would send; with --yes, send it.

Without --yes nothing is sent: the files, cards included, are prepared in RUN/hub/ to be looked at, and compared with
what the repo has. The token is the one of `hf auth login`, or HF_TOKEN; there is no option for it, since command lines
are remembered. A push that was broken off is taken up by giving the same command again.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Plans, shows the plans, and pushes them if told so; what stands in the way ends it with one line."""
    asked = parser().parse_args(None if argv is None else list(argv))
    try:
        plans = plan_pushes(
            asked.run,
            asked.repo_id,
            asked.what,
            private=not asked.public,
            revision=asked.revision,
            create_pr=asked.create_pr,
            evaluation=asked.evaluation,
            replace_other=asked.replace_other,
        )
        print("\n\n".join(map(str, plans)))
        if asked.dry_run or not asked.yes:
            print("\nThis was a dry run: nothing was sent. Give --yes to send it.")
        else:
            send(plans)
    except (ValueError, OSError) as error:
        sys.exit(f"pacl push: {error}")
    if not all(plan.ready for plan in plans):
        sys.exit("pacl push: not ready, see MISSING and PROBLEM above")


def send(plans: Sequence[PushPlan]) -> None:
    """Pushes all, or none if one of them has gaps."""
    if all(plan.ready for plan in plans):
        for plan in plans:
            print(f"\n{plan.what}: {push(plan)}")


def parser() -> argparse.ArgumentParser:
    """What can be given."""
    made = argparse.ArgumentParser(
        "pacl push", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("run", metavar="RUN", help="a run's folder, such as runs/built_in")
    made.add_argument("--repo_id", required=True, metavar="ORG/NAME", help="the repo on the Hub")
    made.add_argument(
        "--what",
        nargs="+",
        choices=WHATS,
        default=["backbone"],
        help="one or several (default: backbone). Models go to the model repo, the dataset to the dataset repo of "
        "that name, evaluation results to evaluation/ in the model repo; beside a backbone, the dual encoder goes to "
        "ORG/NAME-dual-encoder",
    )
    made.add_argument("--yes", action="store_true", help="send it")
    made.add_argument("--dry_run", action="store_true", help="send nothing, also with --yes")
    made.add_argument(
        "--public", action="store_true", help="make a new repo public, or allow one that is (default: private)"
    )
    made.add_argument(
        "--revision", metavar="BRANCH", help="commit to this branch, made from main where it is not there"
    )
    made.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    made.add_argument(
        "--evaluation", metavar="OUT", help="the --output_dir of pacl evaluate (default: RUN/evaluation)"
    )
    made.add_argument("--replace_other", action="store_true", help="write into a repo that holds something else")
    return made


if __name__ == "__main__":
    main()
