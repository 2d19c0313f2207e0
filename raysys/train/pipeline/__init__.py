"""Pipeline parallelism: tracing, partitioning and running a module in stages.

`torch.distributed.pipelining` copies tied weights into each stage, where each copy has a part of
the gradient, gives the batch to the first stage alone, and has no backward pass for a value that
two later stages use. Its `Schedule1F1B` takes the same steps with the stages of this package, but
receives nothing while it computes and refuses fewer micro-batches than stages.
`tests/train/pipeline/test_torch_pipelining.py` shows it, and fails when a later PyTorch can.
"""
