from __future__ import annotations
from pathlib import Path
from lmsmith.study.run import Studied
def write_study_report(studied: Studied) -> Path:
    return studied.place.out / "report.html"
