"""Parameter groups, optimisers and learning-rate schedules; torch only, usable in a notebook."""
