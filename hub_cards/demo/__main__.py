"""`python -m pacl.hub_cards.demo`."""

from .command import main

main()
