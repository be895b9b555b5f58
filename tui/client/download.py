"""Files of the server on this machine: under a name that is free, whole or not at all."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tui.client.api import ClientError

_LONGEST_PREFIX = 100


class SaveError(ClientError):
    """The file cannot be written here."""


def free_path(directory: Path, name: str) -> Path:
    """`name`, or with a number before its suffix where there is one of that name."""
    first = directory / name
    target, number = first, 1
    while target.exists() or target.is_symlink():
        number += 1
        target = first.with_stem(f"{first.stem}-{number}")
    return target


def path_of(text: str) -> Path:
    """What a person typed, from the working directory on. Raises SaveError."""
    if not text.strip() or "\0" in text:
        raise SaveError("This is no name of a file.")
    try:
        return Path(text.strip()).expanduser().absolute()
    except RuntimeError as error:
        raise SaveError(f"{text.strip()}: there is no such home directory.") from error


async def save(pieces: AsyncIterator[bytes], target: Path, on_size: Callable[[int], None]) -> int:
    """Write all of it; what is there already is never touched. The number of bytes.

    `on_size` hears how many bytes there are so far. Raises ClientError; then nothing is left.
    """
    made: list[Path] = []
    size = 0
    try:
        part, descriptor = await asyncio.to_thread(_begin, target, made)
        with open(descriptor, "wb") as file:  # noqa: PTH123, ASYNC230 - a descriptor
            async for piece in pieces:
                await asyncio.to_thread(file.write, piece)
                size += len(piece)
                on_size(size)
        await asyncio.to_thread(part.replace, target)
    except BaseException as error:
        _remove(made)
        if isinstance(error, FileExistsError):
            raise SaveError(f"{target} exists.", "Give another name.") from error
        if isinstance(error, OSError):
            why = os.strerror(error.errno or 0)
            raise SaveError(f"{target} cannot be written: {why}.") from error
        raise
    return size


def _begin(target: Path, made: list[Path]) -> tuple[Path, int]:
    """Take the name, and open a part beside it; both are noted in `made`. Raises OSError."""
    with target.open("xb") as reserved:
        made.append(target)
        mode = os.fstat(reserved.fileno()).st_mode & 0o777
    descriptor, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.name[:_LONGEST_PREFIX]}.", suffix=".part"
    )
    made.append(Path(name))
    os.fchmod(descriptor, mode)
    return Path(name), descriptor


def _remove(made: list[Path]) -> None:
    for path in made:
        path.unlink(missing_ok=True)
