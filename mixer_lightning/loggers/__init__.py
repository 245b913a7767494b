"""Dashboards, never in the way of training. The only importer of wandb."""
