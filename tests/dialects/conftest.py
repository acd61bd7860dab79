from tests.store.conftest import open_one

__all__ = ["open_one"]
