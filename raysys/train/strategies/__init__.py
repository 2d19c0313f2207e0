"""Training strategies: DDP, FSDP, ZeRO."""
