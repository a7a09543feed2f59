"""Scripted experts for LIBERO tasks."""
