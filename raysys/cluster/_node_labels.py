"""Which machines work asks for, by the labels that the files in clusters/ give their nodes."""

# What must not lose its machine, such as replicas and indexes. Ray's own label, `spot` or
# `on-demand`; a machine without it, as on a laptop, will do too. Work that says nothing goes to
# spot machines first, by the priority of their node types.
STAYING: dict[str, str] = {"ray.io/market-type": "!spot"}
