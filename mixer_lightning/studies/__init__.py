"""Measurements that back what the README says; each is `mixer study <name>`."""
