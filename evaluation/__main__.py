"""The command line: `accelerate launch -m pacl.evaluation --backbone … --dataset … --data_dir … --output_dir …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from accelerate import PartialState
from transformers.hf_argparser import DataClassType, HfArgumentParser

from .arguments import EvaluationArguments
from .run import evaluate


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluates as the arguments say, and prints the table; a wrong argument ends it with one line that says why."""
    parser = HfArgumentParser(DataClassType(EvaluationArguments), prog="pacl.evaluation")
    try:
        (arguments,) = parser.parse_args_into_dataclasses(None if argv is None else list(argv))
        evaluation = evaluate(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"pacl.evaluation: {error}")
    if PartialState().is_main_process:
        print(evaluation.table())
        processes = PartialState().num_processes
        print(f"evaluated on {processes} process{'es' * (processes > 1)}; all results are in {arguments.output_dir}")


if __name__ == "__main__":
    main()
