"""Run by the EAS client's own Python path: what its test suite leaves out of the client's methods.

Arguments: the endpoint (host:port) and the service's name.
"""

from __future__ import annotations

import sys

from eas_prediction import QueueClient  # type: ignore[import-not-found]

endpoint, service = sys.argv[1:3]
sink = QueueClient(endpoint, f"{service}/sink")
sink.init(uid="one", gid="a group")
other = QueueClient(endpoint, service)
other.init(uid="two", gid="a group", path_suffix="sink")
index = [int(sink.put(f"{n}", {"kind": "even" if n % 2 == 0 else "odd"})[0]) for n in range(6)]


def told(frames: list) -> list[str]:
    return [one.data.decode() for one in frames]


# get: by index, the last one, several at once, by tags; taken away or not
assert told(sink.get(index=index[2], auto_delete=False)) == ["2"]
assert told(sink.get(index=-1, auto_delete=False)) == ["5"]
assert told(sink.get(length=4, auto_delete=False)) == ["0", "1", "2", "3"]
assert told(sink.get(length=9, timeout="100ms", auto_delete=False, tags={"kind": "odd"})) == ["1", "3", "5"]
assert told(sink.get(length=2)) == ["0", "1"]
assert told(sink.get(length=1, timeout="50ms", tags={"kind": "none"})) == []

# delete: one, several, one that is not there
assert sink.delete(index[5]) == "OK" and sink.delete([index[4], index[0]]) == "OK"
assert told(sink.get(length=9, timeout="50ms", auto_delete=False)) == ["2", "3"]

# search: before it is delivered, while a consumer has it, when it is done
assert sink.search(index[3]) == {"ConsumerId": "", "IsPending": False, "WaitCount": 1}
assert sink.search(0) == {} and sink.search("x") == {}

# watch: indexes only; the same client's connection breaks, and it gets what it had not committed again
watcher = sink.watch(0, 2, index_only=True)
seen = []
for frame in watcher.run():
    seen.append((frame.index, frame.data))
    if len(seen) == 2:
        assert sink.search(index[2])["ConsumerId"] == "a group.one"
        assert sink.search(index[2])["IsPending"] is True
        sink.commit(index[2])
        sink.watch_sock.shutdown()
    if len(seen) == 3:
        break
assert seen == [(index[2], b""), (index[3], b""), (index[3], b"")], seen
# another consumer of the group gets it when the first one goes without committing
handed = other.watch(0, 5, tags={"kind": "odd"})
watcher.close()
for frame in handed.run():
    assert (frame.index, frame.data, frame.tags["kind"]) == (index[3], b"3", "odd")
    assert other.commit([frame.index]) == b"OK"
    break
handed.close()

attributes = sink.attributes()
assert attributes["stream.length"] == "0" and attributes["meta.state"] == "Normal"
assert all(isinstance(value, str) for value in attributes.values())
assert attributes["meta.header.user"].lower() == "x-eas-queueservice-redis-uid"
assert attributes["meta.header.group"].lower() == "x-eas-queueservice-redis-gid"
assert sink.search(index[3]) == {}

# truncate
last = int(sink.put("a")[0])
sink.truncate(last)
assert sink.attributes()["stream.length"] == "1"
sink.truncate(last + 1)
assert sink.attributes()["stream.length"] == "0"
print("OK")
