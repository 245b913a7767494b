"""The 19 tasks of VTAB-1k (arXiv 1910.04867), read without TensorFlow: `tasks.vtab`."""
