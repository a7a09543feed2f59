"""Checks of a reward against recorded episodes."""
