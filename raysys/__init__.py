"""raysys: the whole life of a machine-learning model on one Ray cluster.

Import what you need from the package that owns the noun, for example
``from raysys.data import Table``. This module imports nothing heavy.
"""

__version__ = "0.1.0"
