"""Measurements that back what the README says; each is `python -m mixer_lightning.studies.<name>`."""
