"""Rewards written by a language model."""
