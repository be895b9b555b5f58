"""A process with the real binding and a fake library: reads GPUs at the times that it is told."""

import json
import sys
from pathlib import Path

from appliance.gpu.nvml_reader import NvmlReader


def main() -> None:
    now = 0.0
    sysfs = Path(sys.argv[1])
    reader: NvmlReader | None = NvmlReader(clock=lambda: now, sysfs=sysfs, list_every_s=0.0)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "open":
            opened = NvmlReader.open(sysfs=sysfs)
            print(json.dumps(None if opened is None else "reader"), flush=True)
            if opened is not None:
                opened.close()
            continue
        now = float(rest)
        print(json.dumps([_told(reading) for reading in reader.read()]), flush=True)
    reader.close()


def _told(reading: object) -> dict[str, object]:
    told = dict(vars(reading))
    told["problem"] = reading.problem  # type: ignore[attr-defined]
    told["condition"] = vars(reading.condition)  # type: ignore[attr-defined]
    return told


if __name__ == "__main__":
    main()
