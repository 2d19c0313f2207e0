"""The vector index and its peers, measured side by side on one set of vectors."""
