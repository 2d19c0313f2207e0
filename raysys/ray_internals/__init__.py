"""Private interfaces of Ray, used nowhere else in raysys; checked against Ray 2.60.

`tests/ray_internals` fails with a clear message when one of them moves.
"""

CHECKED_RAY = "2.60"
