"""What a run leaves, made ready for the Hub: cards, exports and pushes."""
