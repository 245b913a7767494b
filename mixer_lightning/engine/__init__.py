"""Training and evaluation: one assembly, one training step, one path from images to logits. Lightning lives here."""
