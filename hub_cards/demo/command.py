"""The command `pacl demo`: finds what to show, builds the app, serves it, or writes it as a Space."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence

from .sources import DemoError, Sources

REQUIREMENTS = ("gradio>=6.31,<7", "grad-cam>=1.5.7")


def main(argv: Sequence[str] | None = None) -> None:
    """
    Run the command.

    Args:
        argv (`Sequence[str]`, *optional*): The words after `pacl demo`; by default those of the process.
    """
    arguments = parser().parse_args(argv)
    try:
        sources = Sources.find(arguments.where, dataset=arguments.dataset, before=arguments.before)
        if arguments.write_space:
            from .space import write_space

            folder = write_space(arguments.write_space, sources, with_dataset=arguments.with_dataset)
            print(f"the Space is in {folder}; try it with: cd {folder} && python app.py")
            return
        require_gradio()
        from .app import build_app, launch

        launch(build_app(sources), arguments.port)
    except (DemoError, OSError) as error:
        sys.exit(f"demo: {error}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("pacl demo", description="Try a model in the browser, on this machine alone.")
    made.add_argument(
        "where", nargs="?", help="a run's folder, or a dual encoder's folder or Hub id (default: runs/built_in)"
    )
    made.add_argument("--dataset", metavar="FOLDER", help="a partitioned dataset, instead of the run's")
    made.add_argument("--before", metavar="MODEL", help="the backbone before PACL, instead of the recipe's")
    made.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    made.add_argument("--write_space", metavar="FOLDER", help="write the demo as a Space into FOLDER, and stop")
    made.add_argument(
        "--with_dataset",
        action="store_true",
        help="let the Space hold a sample of the posts also where they are not generated ones; mind their licence",
    )
    return made


def require_gradio() -> None:
    """
    Check that what the app needs beyond the package is there.

    Raises:
        DemoError: if not, with the way to install it.
    """
    missing = [name for name in ("gradio", "pytorch_grad_cam") if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(f'{" and ".join(missing)} not installed; pip install "pacl[demo]"')
