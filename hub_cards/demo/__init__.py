"""The demo, `pacl demo`: try a model on pictures and look through a partitioned dataset, in a browser and offline."""

from .command import main
from .sources import DemoError, Sources

__all__ = ["DemoError", "Sources", "main"]
