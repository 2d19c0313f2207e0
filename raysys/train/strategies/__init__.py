"""Training strategies: one device, DDP, FSDP, ZeRO."""
