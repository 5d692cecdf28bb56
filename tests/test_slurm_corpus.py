from __future__ import annotations
import json, dataclasses
from pathlib import Path
from tests.support.slurm import Cluster
from tests.support.slurm_corpus import *

def test_real(slurm: Cluster, tmp_path):
    import time
    t=time.time()
    (tmp_path/"bin").mkdir(); (tmp_path/"r").mkdir()
    runs=Runs(RealSlurm(slurm, tmp_path/"bin"), tmp_path/"r")
    for s in SCRIPTS: runs.submit(s)
    print("submitted", time.time()-t)
    try:
        runs.wait(seconds=200)
    finally:
        print("done", time.time()-t)
        jobs=runs.side.jobs()
        out={s: dataclasses.asdict(runs.outcome(s,jobs)) for s in SCRIPTS}
        Path("/tmp/real.json").write_text(json.dumps(out,indent=1))
