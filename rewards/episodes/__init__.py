"""Recorded and computed episodes that rewards are verified on."""
