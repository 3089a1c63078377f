"""Let go of the host's models while the host still stands: at interpreter exit it complains about each of them."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _release_models():
    yield
    import gc

    from attention_loom.toyworld import bundles

    bundles.release()
    gc.collect()
