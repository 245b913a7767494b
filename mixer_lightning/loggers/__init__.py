"""Dashboards, never in the way of training: one file each."""
