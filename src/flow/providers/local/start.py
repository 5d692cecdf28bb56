"""The scheduler's process: run as a file, so that it finds its own copy of flow whatever the folder and environment."""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    from flow.providers.local.scheduler import run

    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), **json.loads(sys.argv[4]))
