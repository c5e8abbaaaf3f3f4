"""NPZ files of strangers: arrays by name, none of them larger than it may be.

No pickles; a member says its size in the archive's directory and again in its own header, and both
are looked at before a byte is unpacked. What unpacks to more than it said is refused by its
checksum; what is larger than the limit by its size.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError, PlanError

_HEADER = 1 << 14
"""Bytes that a member may have before its values."""


def read_arrays(
    path: str | os.PathLike[str], names: Collection[str], limit: int
) -> dict[str, NDArray[Any]]:
    """The arrays of an NPZ file that are called one of `names`; the others are not unpacked.

    Args:
        limit: bytes that all of them may take together.

    Raises:
        InputError: the file is not there, is no regular file or no NPZ file, or is damaged.
        PlanError: its arrays would take more than `limit` bytes.
    """
    try:
        with _opened(path) as file, ZipFile(file) as archive:
            sizes = {n.removesuffix(".npy"): archive.getinfo(n) for n in archive.namelist()}
            wanted = {name: sizes[name] for name in names if name in sizes}
            total = sum(member.file_size for member in wanted.values())
            if total > limit:
                raise PlanError(
                    f"{str(path)!r} holds arrays of {total / 2**20:.3g} MiB, more than the limit "
                    f"of {limit / 2**20:.3g} MiB; raise memory_limit if you trust the file"
                )
            return {name: _array(archive, member) for name, member in wanted.items()}
    except (InputError, PlanError):
        raise
    except Exception as error:  # whatever damaged bytes make zipfile, zlib and NumPy raise
        raise InputError(f"{str(path)!r} is no NPZ file, or damaged ({error})") from None


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise InputError(f"{str(path)!r} is no regular file; give a .npz file")
        return Path(path).open("rb")
    except InputError:  # a ValueError too
        raise
    except (OSError, ValueError, TypeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InputError(f"cannot read {str(path)!r}: {reason}; check the path") from None


def _array(archive: ZipFile, member: ZipInfo) -> NDArray[Any]:
    """One array, whose header fits the size of its member."""
    with archive.open(member) as file:
        start = BytesIO(file.read(_HEADER))
    version = np.lib.format.read_magic(start)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(start)
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or dtype.hasobject or size != member.file_size - start.tell():
        raise ValueError(f"its array {member.filename!r} is not what its header says")
    with archive.open(member) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
