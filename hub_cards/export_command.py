"""The command `pacl export`: a run's models in the formats that others load."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .classifier import export_classifier
from .export_base import Export
from .export_vision_text import export_vision_text_dual_encoder
from .exports import export_backbone, export_dual_encoder
from .onnx import export_onnx


def main(argv: Sequence[str] | None = None) -> None:
    """Exports what is asked for, and prints where it is and what its users must know."""
    asked = parser().parse_args(None if argv is None else list(argv))
    try:
        export = run(asked)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"pacl export: {error}")
    print(f"{export.kind}: {export.path} (outputs differ by {export.difference:.1g} of the largest, loaded again)")
    for note in export.notes:
        print(f"  {note}")


def run(asked: argparse.Namespace) -> Export:
    """The export that the arguments ask for."""
    match asked.what:
        case "backbone":
            return export_backbone(asked.source, asked.target, overwrite=asked.overwrite)
        case "dual_encoder":
            remote_code = not asked.no_remote_code
            return export_dual_encoder(asked.source, asked.target, remote_code=remote_code, overwrite=asked.overwrite)
        case "vision_text":
            return export_vision_text_dual_encoder(asked.source, asked.target, overwrite=asked.overwrite)
        case "classifier":
            return export_classifier(
                asked.source, asked.heads, asked.target, head=asked.head, overwrite=asked.overwrite
            )
        case _:
            return export_onnx(asked.source, asked.target, overwrite=asked.overwrite)


def parser() -> argparse.ArgumentParser:
    """What can be given."""
    made = argparse.ArgumentParser("pacl export", description="Save a run's models in formats that others load.")
    kinds = made.add_subparsers(dest="what", required=True)
    abouts = {
        "backbone": "the enhanced backbone in its native format (transformers or timm)",
        "dual_encoder": "the PACLModel with its processor and the code that loads it",
        "vision_text": "the dual encoder as transformers' VisionTextDualEncoderModel, without code of ours",
        "classifier": "a backbone with the head of a linear evaluation, for image-classification",
        "onnx": "the backbone as one ONNX file",
    }
    for name, about in abouts.items():
        kind = kinds.add_parser(name, help=about, description=f"Save {about}.")
        kind.add_argument("source", metavar="SOURCE", help="a run's folder, or a model's folder or Hub id")
        kind.add_argument("target", metavar="TARGET", help="the file" if name == "onnx" else "the folder")
        kind.add_argument("--overwrite", action="store_true", help="replace what is there")
        if name == "dual_encoder":
            kind.add_argument("--no_remote_code", action="store_true", help="leave the code away; loading needs pacl")
        if name == "classifier":
            heads = "the head's file, from OUT/models/ of pacl evaluate"
            kind.add_argument("--heads", required=True, metavar="FILE", help=heads)
            kind.add_argument("--head", metavar="NAME", help="which one, where there are several (WebEmo's levels)")
    return made


if __name__ == "__main__":
    main()
