import numpy as np

from raysys.tune._objectives import pareto_front


def test_the_front_matches_brute_force() -> None:
    rng = np.random.default_rng(0)
    for dimensions in (1, 2, 3):
        for _ in range(50):
            # Few distinct values, so that there are ties.
            points = rng.integers(0, 6, size=(25, dimensions))
            expected = [
                index
                for index, point in enumerate(points)
                if not any(
                    (peer >= point).all() and ((peer > point).any() or number < index)
                    for number, peer in enumerate(points)
                    if number != index
                )
            ]
            assert pareto_front(points.tolist()) == expected
