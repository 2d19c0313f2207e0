"""What a cluster's own work costs as it grows."""
