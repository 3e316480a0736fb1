"""What the tests of training share."""

import multiprocessing
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import pytest


@pytest.fixture
def one_thread():
    """Products this small are slower on several threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def context(request):
    """Processes that are forked from one that has imported the test's module: none starts PyTorch anew."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([request.module.__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])  # where it finds that module
        ensure_running()
    return found
