"""Provenance of a table, from the files that its jobs wrote."""

from collections.abc import Iterable, Sequence

from ddpm_lab.runs import run_record
from ddpm_lab.runs.provenance import Environment
from ddpm_lab.sweeps.job import ENVIRONMENT, Job
from ddpm_lab.utils.safe_load import read_json


def describe_environments(jobs: Iterable[Job], seeds: Sequence[int] = ()) -> str:
    """Return the code, libraries, machines, days and seeds of the finished jobs as one line.

    Empty if no job is finished. Days are in UTC.
    """
    by_job = [_environments(job) for job in jobs if job.done()]
    if not by_job:
        return ""
    environments = [environment for each in by_job for environment in each]
    days = sorted({(environment.get("date") or "")[:10] for environment in environments} - {""})
    missing = sum(not each for each in by_job)
    texts = [
        *(_distinct(label, each) for label, each in _columns(environments).items()),
        " to ".join(dict.fromkeys([*days[:1], *days[-1:]])),
        f"the code and the machine of {missing} jobs were not recorded" if missing else "",
        f"seeds {', '.join(map(str, seeds))}" if seeds else "",
    ]
    return "; ".join(filter(None, texts))


def _environments(job: Job) -> list[Environment]:
    """Return the environment of each start of a training, and of the last attempt of a job."""
    files = (run_record.FILE, ENVIRONMENT)
    contents = [read_json(job.folder / file) for file in files]
    return [each for content in contents for each in run_record.environments(content)]


def _columns(environments: Sequence[Environment]) -> dict[str, list[str]]:
    """Return the versions, commits and machines by label; empty texts for missing values."""
    values = [{key: value or "" for key, value in each.items()} for each in environments]
    commits = [each.get("commit", "") for each in values]
    cores = [each.get("cores", "") for each in values]
    devices = [each.get("device", "") for each in values]
    return {
        "ddpm-lab ": [each.get("ddpm_lab", "") for each in values],
        "commit ": [commit[:9] + "+" * commit.endswith("+") for commit in commits],
        "torch ": [each.get("torch", "") for each in values],
        "": [f"{a} ({b} cores)" if b else a for a, b in zip(devices, cores, strict=True)],
    }


def _distinct(label: str, texts: Sequence[str]) -> str:
    distinct = dict.fromkeys(filter(None, texts))
    return f"{label}{', '.join(distinct)}" if distinct else ""
