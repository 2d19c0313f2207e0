"""Pipeline parallelism: tracing, partitioning and running a module in stages."""
