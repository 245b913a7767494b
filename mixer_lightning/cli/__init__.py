"""The programs: one file each, without torch at import."""
