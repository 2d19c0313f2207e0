"""The serving layer and its peers, measured side by side on one graph."""
