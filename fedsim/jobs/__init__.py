"""Batch jobs and where they run: what a site is like, the batch file of a job, what a machine has for many ranks."""
