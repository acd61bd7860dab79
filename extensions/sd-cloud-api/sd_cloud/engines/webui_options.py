"""Options of the webui that hold for one job alone.

The webui keeps its options in one dict that every thread reads, and a request that overrides some
writes them there and back: whoever looks meanwhile sees them, whoever saves meanwhile keeps them,
and one that was never saved is not put back at all. Here the thread that runs a job has values of
its own on top of that dict. Nobody else sees them, and with the job they are gone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class OptionsData(dict[str, Any]):
    """``opts.data`` of the webui. Within `on_top_of`, this thread's reads and writes are its own.

    Iteration shows what everybody has.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(data)
        self._here = threading.local()

    @property
    def own(self) -> dict[str, Any] | None:
        """This thread's own values; None outside of a job."""
        return getattr(self._here, "values", None)

    @own.setter
    def own(self, values: dict[str, Any] | None) -> None:
        self._here.values = values

    def __getitem__(self, name: str) -> Any:
        own = self.own
        return own[name] if own is not None and name in own else super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        own = self.own
        return (own is not None and name in own) or super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        own = self.own
        return own[name] if own is not None and name in own else super().get(name, default)

    def __setitem__(self, name: str, value: Any) -> None:
        own = self.own
        if own is None:
            super().__setitem__(name, value)
        else:
            own[name] = value


@contextmanager
def on_top_of(opts: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Within: this thread reads ``values`` over the webui's ``opts``, and what it sets is its own."""
    data = shared_data(opts)
    data.own = dict(values)
    try:
        yield
    finally:
        data.own = None


def shared_data(opts: Any) -> OptionsData:
    """``opts.data``, able to hold a thread's own values from now on."""
    if not isinstance(opts.data, OptionsData):
        opts.data = OptionsData(opts.data)
    data = opts.data
    assert isinstance(data, OptionsData)
    return data
