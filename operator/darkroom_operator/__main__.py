"""``python -m darkroom_operator``: read the configuration, set up logging, run."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from datetime import UTC, datetime

from darkroom_operator.config import Config, parse
from darkroom_operator.resyncing import CannotStartError


class _JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _set_up_logging(config: Config) -> None:
    handler = logging.StreamHandler()
    if config.log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=config.log_level, handlers=[handler])
    # kopf tells of every object it sees; only its troubles matter here.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLevelName(config.log_level)))


def main() -> int:
    """Run the operator until it is asked to stop; return the process's exit code."""
    config = parse(sys.argv[1:], os.environ)
    _set_up_logging(config)
    from darkroom_operator.running import run

    try:
        asyncio.run(run(config))
    except CannotStartError as error:
        logging.getLogger("darkroom_operator").error("cannot start: %s", error)  # noqa: TRY400 - a message for a person
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
