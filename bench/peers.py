"""Others on the same work, each run by an interpreter of its own: submitit, installed here; Ray where it is there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from bench.place import own_home

_ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv-bench"
_SUBMITIT = """
import json, os, sys, time
begin = time.perf_counter(); import submitit; loaded = time.perf_counter() - begin
executor = submitit.LocalExecutor("logs"); executor.update_parameters(timeout_min=5)
from operator import add
submitted, done = [], []
for _ in range(5):
    begin = time.perf_counter(); job = executor.submit(add, 1, 1); submitted.append(time.perf_counter() - begin)
    assert job.result() == 2; done.append(time.perf_counter() - begin)
begin = time.perf_counter(); jobs = [executor.submit(add, 1, 1) for _ in range(40)]
assert [job.result() for job in jobs] == [2] * 40; rate = 40 / (time.perf_counter() - begin)
middle = lambda samples: sorted(samples)[len(samples) // 2] * 1000
print(json.dumps({"import": f"{loaded * 1000:,.0f} ms", "submit": f"{middle(submitted):,.0f} ms",
                  "result": f"{middle(done):,.0f} ms", "throughput": f"{rate:.1f}/s"}))
"""
_RAY = """
import json, os, time
begin = time.perf_counter(); import ray; loaded = time.perf_counter() - begin
ray.init(log_to_driver=False, include_dashboard=False, num_cpus=os.cpu_count())
import subprocess
@ray.remote
def run(): return subprocess.run(["true"]).returncode
ray.get(run.remote()); done = []
for _ in range(50):
    begin = time.perf_counter(); ray.get(run.remote()); done.append(time.perf_counter() - begin)
begin = time.perf_counter(); ray.get([run.remote() for _ in range(1000)]); rate = 1000 / (time.perf_counter() - begin)
print(json.dumps({"import": f"{loaded * 1000:,.0f} ms", "result": f"{sorted(done)[25] * 1000:,.0f} ms",
                  "throughput": f"{rate:,.0f}/s"}))
"""


def measure_peers() -> dict[str, str]:
    """By the key of a figure, what each peer takes, as text. Installs submitit from the package index once."""
    found = {"submitit": _asked(_python_with_submitit(), _SUBMITIT)}
    if subprocess.run([sys.executable, "-c", "import ray"], capture_output=True, check=False).returncode == 0:
        found["ray"] = _asked(sys.executable, _RAY)
    keys = dict.fromkeys(key for answers in found.values() for key in answers)
    return {
        key: ", ".join(f"{name} {answers[key]}" for name, answers in found.items() if key in answers) for key in keys
    }


def _python_with_submitit() -> str:
    python = _ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(_ENVIRONMENT)], check=True)
    if subprocess.run([python, "-c", "import submitit"], capture_output=True, check=False).returncode:
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "submitit"]
        subprocess.run(pip, check=True)
    return str(python)


def _asked(python: str, code: str) -> Mapping[str, str]:
    with own_home():
        answer = subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE, timeout=600)
    found: dict[str, str] = json.loads(answer.stdout.splitlines()[-1])
    return found
