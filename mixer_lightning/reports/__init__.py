"""Tables and figures from run directories; nothing here imports torch."""
