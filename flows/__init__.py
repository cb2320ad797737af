"""The only place that knows Prefect: when to run, in which order, with what retries."""
