"""Batch jobs: what a site is like, the batch file of a job, and handing it to Slurm."""

from fedsim.jobs.batch import Job, text
from fedsim.jobs.machine import Machine

__all__ = ["Job", "Machine", "text"]
