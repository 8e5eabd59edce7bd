"""What of a machine's refusals is not a bug of ours."""

from ddpm_lab.errors import HINDRANCES, Hindered, Told

MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def hindrance(error: BaseException) -> Told | None:
    """What `error` is if the machine is to blame, in our words; None if it is not."""
    text = " ".join(str(error).split())[:200]
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(map(text.count, MEMORY))
    ):
        return Hindered(f"not enough memory ({text}); try a smaller data.batch_size")
    if isinstance(error, OSError) and error.errno in HINDRANCES:
        what = "the file that was being written" if error.filename is None else error.filename
        return Hindered(f"{what}: {error.strerror}; make room there, or choose another folder")
    return None
