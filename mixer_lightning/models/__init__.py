"""Backbones: one family per file, equations and initialisation."""
