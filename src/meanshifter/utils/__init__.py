"""Helpers for every part of the package."""
