"""Provenance of a table, from the files that its jobs wrote."""

from collections.abc import Iterable, Iterator, Sequence

from ddpm_lab.runs import run_record
from ddpm_lab.runs.provenance import JOB_FILE, Environment
from ddpm_lab.sweeps.job import Job
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
        *dict.fromkeys(text for environment in environments for text in _describe(environment)),
        " to ".join(dict.fromkeys([*days[:1], *days[-1:]])),
        f"the code and the machine of {missing} jobs were not recorded" if missing else "",
        f"seeds {', '.join(map(str, seeds))}" if seeds else "",
    ]
    return "; ".join(filter(None, texts))


def _environments(job: Job) -> list[Environment]:
    """Return the environment of each start of a training, and of the last attempt of a job."""
    files = (run_record.FILE, JOB_FILE)
    contents = [read_json(job.folder / file) for file in files]
    return [each for content in contents for each in run_record.environments(content)]


def _describe(environment: Environment) -> Iterator[str]:
    values = {key: value for key, value in environment.items() if value}
    commit = f", commit {values['commit'][:9]}" if "commit" in values else ""
    if "ddpm_lab" in values:
        plus = "+" if commit and values["commit"].endswith("+") else ""
        yield f"ddpm-lab {values['ddpm_lab']}{commit}{plus}"
    if "torch" in values:
        yield f"torch {values['torch']}"
    if "device" in values:
        yield values["device"] + (f", {values['cores']} cores" if "cores" in values else "")
