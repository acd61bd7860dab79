"""Run by the EAS client's own Python path: the guide's asynchronous calls, put and watched.

Arguments: the endpoint (host:port), the service's name, a save_dir, how many messages.
"""

from __future__ import annotations

import json
import sys
import urllib.request

from eas_prediction import QueueClient  # type: ignore[import-not-found]

endpoint, service, save_dir, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

# As the guide's Python sample does it, over HTTP, with the tag in the query.
sent = {}
for i in range(count):
    body = {
        "prompt": "cute dog",
        "steps": 2,
        "width": 64,
        "height": 64,
        "alwayson_scripts": {"save_dir": save_dir},
    }
    request = urllib.request.Request(
        f"http://{endpoint}/api/predict/{service}/sdapi/v1/txt2img?task_id=txt2img_{i}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        sent[f"txt2img_{i}"] = int(answer.read())

# And by the client, as the guide's Java sample does it.
inputs = QueueClient(endpoint, f"{service}/sdapi/v1/txt2img")
inputs.init()
body["alwayson_scripts"] = {"save_dir": save_dir}
index, request_id = inputs.put(json.dumps(body).encode(), {"task_id": "by the client"})
print("search", json.dumps(inputs.search(index)))

sink = QueueClient(endpoint, f"{service}/sink")
sink.set_token("")
sink.init()
watcher = sink.watch(0, 5, auto_commit=False)
got = {}
for x in watcher.run():
    data = json.loads(x.data.decode("utf-8"))
    got[x.tags["task_id"]] = {
        "requestId": x.tags["requestId"],
        "parameters": data["parameters"],
        "images": data["images"],
    }
    sink.commit(x.index)
    if len(got) == count + 1:
        break
watcher.close()
assert got["by the client"]["requestId"] == request_id
print("got", json.dumps(got))
print("attributes", json.dumps(sink.attributes()))
