"""Run by the EAS client's own Python path: the queue test suite that ships in its package.

Arguments: the endpoint (host:port) and the service's name.
"""

from __future__ import annotations

import sys
import unittest

from eas_prediction import test_queue_client as suite  # type: ignore[import-not-found]

#: They need a processor of the vendor behind the queue.
LEFT_OUT = ("test_watch_with_inference_service_sync", "test_watch_with_inference_service_async")

suite.QueueEndpoint, suite.QueueName = sys.argv[1:3]
suite.SinkQueueName = f"{suite.QueueName}/sink"
names = [
    name
    for name in unittest.defaultTestLoader.getTestCaseNames(suite.QueueClientTestCase)
    if name not in LEFT_OUT
]
assert len(names) == 7, names
ran = unittest.TextTestRunner(verbosity=2, stream=sys.stdout).run(
    unittest.TestSuite(suite.QueueClientTestCase(name) for name in names)
)
sys.exit(0 if ran.wasSuccessful() else 1)
