"""Short runs of many settings in processes that stay."""
