"""The data layer against what it would be written with by hand."""
