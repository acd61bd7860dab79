from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sd_cloud.inside_webui.ram import WeightsInRam


class Tensor:
    """As much of a tensor as the cache asks for."""

    def __init__(self, size_bytes: int) -> None:
        self.values = np.zeros(size_bytes, dtype=np.uint8)

    def numel(self) -> int:
        return int(self.values.size)

    def element_size(self) -> int:
        return 1

    def detach(self) -> Tensor:
        return self

    def to(self, device: str, *, copy: bool) -> Tensor:
        assert device == "cpu" and copy
        made = Tensor(0)
        made.values = self.values.copy()
        return made


class Machine:
    """RAM with room for so many bytes of what the cache keeps."""

    def __init__(self, room_bytes: int, reserved_bytes: int) -> None:
        self.room_bytes = room_bytes
        self.cache = WeightsInRam(reserved_bytes=reserved_bytes, free_bytes=self.free)

    def free(self) -> int:
        return self.room_bytes - sum(kept.size_bytes for kept in self.cache._kept.values())


def file(tmp_path: Path, name: str) -> str:
    path = tmp_path / name
    path.write_text(name)
    return str(path)


def weights(size_bytes: int) -> dict[str, object]:
    return {"weight": Tensor(size_bytes), "step": 3}


def test_what_was_used_longest_ago_leaves_first(tmp_path: Path) -> None:
    cache = Machine(room_bytes=350, reserved_bytes=100).cache
    a, b, c = (file(tmp_path, name) for name in "abc")
    cache.keep(a, weights(100))
    cache.keep(b, weights(100))
    assert cache.get(a) is not None  # now b is the one used longest ago
    cache.keep(c, weights(100))
    assert cache.get(b) is None and cache.get(a) is not None and cache.get(c) is not None


def test_the_reserve_stays_free_even_if_nothing_can_be_kept(tmp_path: Path) -> None:
    machine = Machine(room_bytes=350, reserved_bytes=300)
    a, b = (file(tmp_path, name) for name in "ab")
    machine.cache.keep(a, weights(50))
    assert machine.cache.get(a) is not None
    machine.cache.keep(b, weights(100))
    assert machine.cache.get(a) is None and machine.cache.get(b) is None and machine.free() == 350


def test_the_caller_gets_a_dict_of_its_own_and_the_weights_are_not_the_files(tmp_path: Path) -> None:
    cache = Machine(room_bytes=1000, reserved_bytes=0).cache
    a = file(tmp_path, "a")
    read = weights(10)
    cache.keep(a, read)
    first = cache.get(a)
    assert first is not None and first["step"] == 3 and first["weight"] is not read["weight"]
    first.clear()  # the webui takes out what it has used
    assert set(cache.get(a) or {}) == {"weight", "step"}


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    cache = Machine(room_bytes=250, reserved_bytes=0).cache
    a = file(tmp_path, "a")
    cache.keep(a, weights(100))
    os.utime(a, ns=(1, 1))
    assert cache.get(a) is None
    cache.keep(a, weights(200))  # in the place of the older one
    assert cache.get(a) is not None


def test_a_file_that_is_gone_is_an_error_and_not_an_old_checkpoint(tmp_path: Path) -> None:
    cache = Machine(room_bytes=250, reserved_bytes=0).cache
    a = file(tmp_path, "a")
    cache.keep(a, weights(100))
    Path(a).unlink()
    with pytest.raises(FileNotFoundError):
        cache.get(a)
