"""Log lines on standard error; journald adds the time where it listens."""

import logging
import os
import sys

_NOISY = ("httpx", "httpcore", "apscheduler", "uvicorn.access", "uvicorn.error", "peewee")


def set_up_logging(level: str) -> None:
    """Configure the root logger once."""
    form = "%(levelname)s %(name)s: %(message)s"
    if "JOURNAL_STREAM" not in os.environ:
        form = f"%(asctime)s {form}"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
