"""The yardstick: one small graph of real models that every server in the comparison answers with.

`{"x": [64 floats]}` -> scale -> {MLP beside gradient-boosted trees} -> weighted mean ->
`{"y": float}`. The models read a digit's value off its 8 x 8 picture (scikit-learn's handwritten
digits). Nothing here imports anything but NumPy, torch and xgboost until `train` is called, so a
peer can use it from an environment of its own.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

FEATURES = 64
MLP_WEIGHT = 0.6


class Scale:
    """Subtracts the mean and divides by the standard deviation of the training rows.

    Args:
        folder: Where `train` wrote `scale.npz`.
    """

    def __init__(self, folder: str | Path) -> None:
        with np.load(Path(folder) / "scale.npz") as stored:
            self._mean, self._std = stored["mean"], stored["std"]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Rows `(n, 64)` of any float type -> `(n, 64)` float32."""
        return ((x - self._mean) / self._std).astype(np.float32)


class Mlp:
    """The perceptron 64-256-256-1.

    Args:
        folder: Where `train` wrote `mlp.pt`.
        threads: Of torch, in this whole process.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._net = _net()
        weights = torch.load(Path(folder) / "mlp.pt", weights_only=True)
        self._net.load_state_dict(weights)
        self._net.eval()

    def __call__(self, scaled: np.ndarray) -> np.ndarray:
        """Rows `(n, 64)` float32 -> `(n,)` float32."""
        with self._torch.inference_mode():
            return self._net(self._torch.from_numpy(scaled)).squeeze(1).numpy()


class Trees:
    """100 boosted trees of depth 6.

    Args:
        folder: Where `train` wrote `trees.ubj`.
        threads: Of xgboost, in this model.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        import xgboost

        self._booster = xgboost.Booster({"nthread": threads})
        self._booster.load_model(Path(folder) / "trees.ubj")
        self._booster.set_param("nthread", threads)

    def __call__(self, scaled: np.ndarray) -> np.ndarray:
        """Rows `(n, 64)` float32 -> `(n,)` float32."""
        return self._booster.inplace_predict(scaled)


def mean(mlp: np.ndarray, trees: np.ndarray) -> np.ndarray:
    """The weighted mean of two predictions `(n,)` float32."""
    return np.float32(MLP_WEIGHT) * mlp + np.float32(1 - MLP_WEIGHT) * trees


class Yardstick:
    """The whole graph in one process, as the answers are checked against it.

    Args:
        folder: Where `train` wrote the models.
        threads: Of each model.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        self._scale = Scale(folder)
        self._mlp, self._trees = Mlp(folder, threads), Trees(folder, threads)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Rows `(n, 64)` -> `(n,)` float32."""
        scaled = self._scale(x)
        return mean(self._mlp(scaled), self._trees(scaled))


def _net() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Linear(FEATURES, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1)
    )


def digits(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures `(1797, 64)` float64 and their digits `(1797,)` float32, in random order.

    A pixel counts the inked dots of a 4 x 4 block, 0 to 16. Noise of one count makes it a number
    of four decimals, as the features of a request usually are.
    """
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    pictures, values = load_digits(return_X_y=True)
    order = rng.permutation(len(values))
    noisy = np.round(pictures + rng.uniform(0, 1, pictures.shape), 4)
    return noisy[order], values[order].astype(np.float32)


def bodies(count: int = 256) -> tuple[list[bytes], np.ndarray]:
    """Request bodies as JSON, and the rows `(count, 64)` float64 that are in them."""
    rows = digits()[0][:count]
    return [json.dumps({"x": row.tolist()}).encode() for row in rows], rows


def train(folder: str | Path, seed: int = 0) -> dict[str, float]:
    """Train both models and write `scale.npz`, `mlp.pt` and `trees.ubj`; a few seconds.

    Returns:
        The root mean square error on the tenth of the pictures that was held out, in digits, of
        "mlp", "trees", "mean" and of always saying the average ("constant").
    """
    import torch
    import xgboost

    folder = Path(folder)
    pictures, values = digits(seed)
    held_out = len(values) // 10
    x, y = pictures[held_out:], values[held_out:]
    np.savez(folder / "scale.npz", mean=x.mean(0), std=x.std(0))
    scaled = Scale(folder)(x)

    torch.manual_seed(seed)
    net = _net()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, weight_decay=1e-4)
    inputs, targets = torch.from_numpy(scaled), torch.from_numpy(y)
    for _ in range(30):
        for rows in torch.randperm(len(y)).split(64):
            loss = torch.nn.functional.mse_loss(net(inputs[rows]).squeeze(1), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(net.state_dict(), folder / "mlp.pt")

    booster = xgboost.train(
        {"max_depth": 6, "eta": 0.1, "seed": seed, "nthread": 1},
        xgboost.DMatrix(scaled, y),
        num_boost_round=100,
    )
    booster.save_model(folder / "trees.ubj")

    scaled, y = Scale(folder)(pictures[:held_out]), values[:held_out]
    said = {"mlp": Mlp(folder)(scaled), "trees": Trees(folder)(scaled)}
    said |= {"mean": mean(said["mlp"], said["trees"]), "constant": np.full_like(y, y.mean())}
    return {name: float(np.sqrt(np.mean((values - y) ** 2))) for name, values in said.items()}
