"""What it costs to run jobs on a cluster: from a submission to the job's first word."""
