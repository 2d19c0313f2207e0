"""Worker processes that try training settings one after another."""
