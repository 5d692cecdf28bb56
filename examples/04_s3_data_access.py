"""Reads what lies under a path on S3 as files: `python 04_s3_data_access.py s3://my-bucket/datasets/digits`.

Needs AWS credentials in the environment or in ~/.aws, and s3fs or rclone where the task runs. A bucket of your own
service is found by AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import sys

from flow import Flow

COUNT = """\
import json, os, pathlib
files = [path for path in pathlib.Path("/data").rglob("*") if path.is_file()]
sizes = {str(path.relative_to("/data")): path.stat().st_size for path in files}
for name in sorted(sizes):
    print(f"{sizes[name]:>12,}  {name}")
result = {"files": len(sizes), "bytes": sum(sizes.values())}
pathlib.Path(os.environ["FLOW_OUTPUT"], "result.json").write_text(json.dumps(result))
"""


def main(source: str) -> None:
    """Run it, and show what it found."""
    with Flow() as client:
        task = client.submit(["python3", "-c", COUNT], name="s3-data", mounts=source, upload_code=False)
        for line in task.logs(follow=True):
            print(line)
        task.wait(check=True)
        found = task.result()
    print(f"{found['files']} files, {found['bytes']:,} bytes at {source}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python 04_s3_data_access.py s3://BUCKET/PATH")
    main(sys.argv[1])
