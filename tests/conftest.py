"""What all tests share: nobody's own keys and settings."""

from collections.abc import Iterator

import pytest

from kernels.entry import use_images
from kernels.inlining import compile_faster

# Importing kernels sets NUMBA_CACHE_DIR, for the processes that tests start too. They would choose
# the same directory themselves, as its key is made of sources and settings (`cache_key`); a test
# that changes a compiler's setting for a process has to give it another directory.

# As agents' compiling processes do: a process without tests of numba's own is ours.
compile_faster()


@pytest.fixture(scope="session", autouse=True)
def _own_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's key store out of the tests: with it, loopback would demand keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True)
def _numbas_own_kernels() -> Iterator[None]:
    """Call numba's functions again after a test that has run an agent within this process."""
    yield
    use_images(None)
