"""Reads requests with the CloudEvents SDK: a JSON list of {"headers", "body"} in the file named first; prints what each one says."""

import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http_event

with open(sys.argv[1], encoding="utf-8") as file:
    requests = json.load(file)
for request in requests:
    event = from_http_event(HTTPMessage(headers=request["headers"], body=request["body"].encode()))
    attributes = {name: str(value) for name, value in event.get_attributes().items()}
    print(json.dumps({"attributes": attributes, "data": event.get_data()}, sort_keys=True))
