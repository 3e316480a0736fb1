"""What progress measures of the process itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from twin import progress
from twin.progress import Figures, Silent, peak_rss_bytes

CHILD = "from twin.progress import peak_rss_bytes as p; print(p())"
# A program of 400 MB that becomes another one, as a shell's exec and every fork with exec do.
PARENT = f"import os, sys\nheld = b'x' * 400_000_000\nos.execv(sys.executable, [sys.executable, '-c', {CHILD!r}])"


def test_the_peak_grows_with_what_is_held() -> None:
    before = peak_rss_bytes()
    held = b"x" * (before + 50_000_000)
    assert peak_rss_bytes() >= before + 50_000_000
    assert len(held) > before


@pytest.mark.skipif(sys.platform != "linux", reason="the figure that Linux keeps")
def test_the_peak_is_not_that_of_the_program_before(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=True)
    assert 5_000_000 < int(done.stdout) < 200_000_000
    # The control: what getrusage says of the same.
    raw = PARENT.replace(CHILD, "import resource as r; print(1024 * r.getrusage(r.RUSAGE_SELF).ru_maxrss)")
    done = subprocess.run([sys.executable, "-c", raw], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 400_000_000


def test_without_proc_getrusage_is_asked(monkeypatch: pytest.MonkeyPatch, isolated: object) -> None:
    monkeypatch.setattr(progress, "_STATUS", progress.Path("nothing-here"))
    assert progress._high_water_bytes() is None
    assert peak_rss_bytes() > 5_000_000


def test_silence() -> None:
    with Silent().task("work", 3) as task:
        task.advance(1, "note")
        Silent().measured(Figures(loss=1.0))
