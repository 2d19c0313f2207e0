"""Jobs: plain modules, run with `python -m jobs.NAME` or through `ray job submit`."""
