"""Reward specifications and programs: parsing, checking, compiling, printing."""
