"""Recipes that ship with the package, so that `pacl train NAME` finds them without a checkout."""
