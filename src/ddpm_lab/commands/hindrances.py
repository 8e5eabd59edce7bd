"""What of a machine's refusals is not a bug of ours."""

import errno

from ddpm_lab.errors import Hindered, Told

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG,
        errno.EMFILE, errno.EIO}  # fmt: skip
MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def hindrance(error: BaseException) -> Told | None:
    """What `error` is if the machine is to blame, in our words; None if it is not."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or any(map(text.count, MEMORY)):
        return Hindered(f"not enough memory ({text}); try a smaller data.batch_size")
    if isinstance(error, OSError) and error.errno in DISK:
        where = f"{error.filename}: " if error.filename else ""
        return Hindered(f"{where}{error.strerror}; try another folder (hydra.run.dir, out), or make room")
    return None
