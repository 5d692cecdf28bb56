"""`python -m tests.support.mithril_cloud` serves until Ctrl-C, so that `flow` can be tried by hand."""

from __future__ import annotations

import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.support.mithril_cloud import serve


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="mithril-cloud-") as folder,
        serve(Path(folder) / "cloud") as cloud,
    ):
        print(f"export FCP_API_KEY={cloud.key} FLOW_MITHRIL_API_URL={cloud.url} FCP_PROJECT=my-project", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
