"""A client of Postrider that knows nothing but two addresses: it learns the API by gRPC reflection, receives what it publishes, and
verifies it with other code than ours. Usage: client.py HOST:PORT HOST:PORT; prints each step, ends with "all done" and code 0."""

import base64
import http.server
import json
import sys
import threading
import time
import uuid

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from werkzeug.datastructures import Authorization

DEADLINE = 20  # seconds, for each call and for each wait


class Api:
    """Calls methods by their full names, with requests and answers as plain dicts."""

    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.database = ProtoReflectionDescriptorDatabase(self.channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)

    def call(self, method, **request):
        service, _, name = method.rpartition("/")
        descriptor = self.pool.FindServiceByName(service).methods_by_name[name]
        ask = message_factory.GetMessageClass(descriptor.input_type)
        answer = message_factory.GetMessageClass(descriptor.output_type)
        stub = self.channel.unary_unary(f"/{method}", ask.SerializeToString, answer.FromString)
        result = stub(json_format.ParseDict(request, ask(), descriptor_pool=self.pool), timeout=DEADLINE)
        return json_format.MessageToDict(result, descriptor_pool=self.pool)

    def wait_for(self, method, condition, **request):
        end = time.monotonic() + DEADLINE
        while True:
            try:
                if condition(self.call(method, **request)):
                    return
            except grpc.RpcError as error:
                check(error.code() is grpc.StatusCode.NOT_FOUND, f"{method} failed with {error.code()}: {error.details()}")
            check(time.monotonic() < end, f"{method} did not come true in {DEADLINE} s")
            time.sleep(0.02)

    def fails(self, method, code, **request):
        try:
            answer = self.call(method, **request)
        except grpc.RpcError as error:
            check(error.code() is code, f"{method} failed with {error.code()}: {error.details()}, wanted {code}")
        else:
            raise AssertionError(f"{method} answered {answer}, wanted {code}")


class Receiver(http.server.ThreadingHTTPServer):
    """Records requests by path."""

    def __init__(self):
        self.requests = []
        self.arrived = threading.Condition()
        super().__init__(("127.0.0.1", 0), Recorder)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"

    def wait(self, path, event_id):
        def find():
            found = [request for request in self.requests if request[0] == path and request[1]["webhook-id"] == event_id]
            return found[0] if found else None

        with self.arrived:
            check(self.arrived.wait_for(find, DEADLINE), f"{event_id} did not arrive at {path}: {self.requests}")
            return find()


class Recorder(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.arrived:
            self.server.requests.append((self.path, headers, body))
            self.server.arrived.notify_all()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def check(holds, why):
    if not holds:
        raise AssertionError(why)


def main(first, second):
    api, other, receiver = Api(first), Api(second), Receiver()
    webhooks, publishing, deliveries = (f"postrider.v1.{name}Service" for name in ("Webhook", "Publish", "Delivery"))

    services = set(api.database.get_services())
    wanted = {f"postrider.v1.{name}Service" for name in ("Account", "Cluster", "Delivery", "EventType", "Publish", "Webhook")}
    check(wanted | {"grpc.health.v1.Health"} <= services, f"reflection names only {services}")
    check(api.call("grpc.health.v1.Health/Check")["status"] == "SERVING", "the server is not healthy")
    print("reflection and health")

    account = "accounts/python"
    auths = {"none": {"none": {}}, "basic": {"basic": {"username": "ada", "password": "p:w"}}, "signed": {"signature": {}}}
    for name, auth in auths.items():
        webhook = {"displayName": name, "targetUrl": receiver.url(f"/{name}"), "auth": auth, "eventTypes": ["PY_*"]}
        request_id = str(uuid.uuid4())
        request = {"parent": account, "webhookId": name, "webhook": webhook, "requestId": request_id}
        check(api.call(f"{webhooks}/CreateWebhook", validateOnly=True, **request)["targetUrl"] == webhook["targetUrl"], "the preview")
        created = api.call(f"{webhooks}/CreateWebhook", **request)
        check(created["name"] == f"{account}/webhooks/{name}" and created["state"] == "ACTIVE", f"created {created}")
        check("p:w" not in json.dumps(created), "the password was read back")
        check(other.call(f"{webhooks}/CreateWebhook", **request)["uid"] == created["uid"], "a repeated create gives the first answer")
    print("created with each kind of authentication")

    api.fails(f"{webhooks}/CreateWebhook", grpc.StatusCode.INVALID_ARGUMENT, parent=account, webhook={"targetUrl": "ftp://x", "eventTypes": []})
    api.fails(f"{webhooks}/GetWebhook", grpc.StatusCode.NOT_FOUND, name=f"{account}/webhooks/absent")

    page = api.call(f"{webhooks}/ListWebhooks", parent=account, pageSize=2)
    rest = other.call(f"{webhooks}/ListWebhooks", parent=account, pageSize=2, pageToken=page["nextPageToken"])
    names = [webhook["name"].rpartition("/")[2] for webhook in page["webhooks"] + rest["webhooks"]]
    check(names == ["basic", "none", "signed"] and not rest.get("nextPageToken"), f"listed {names}")
    print("listed in pages")

    before = api.call(f"{webhooks}/GetWebhook", name=f"{account}/webhooks/none")
    edit = {"name": before["name"], "displayName": "edited", "description": "not in the mask", "etag": before["etag"]}
    edited = api.call(f"{webhooks}/UpdateWebhook", webhook=edit, updateMask="displayName")
    check(edited["displayName"] == "edited" and "description" not in edited, f"edited {edited}")
    check(edited["targetUrl"] == before["targetUrl"] and edited["etag"] != before["etag"], "the rest is kept")
    other.fails(f"{webhooks}/UpdateWebhook", grpc.StatusCode.ABORTED, webhook=edit, updateMask="displayName")
    print("edited with a field mask and an etag")

    people = {"eventId": "struct", "eventName": "PY_STRUCT", "data": {"count": 3, "half": 0.5, "text": "é", "list": [1, None, True]}}
    exact = '{"z": 1.0, "a": 100000000000000000001}'
    services = {"eventId": "exact", "eventName": "PY_EXACT", "dataJson": base64.b64encode(exact.encode()).decode()}
    request = {"parent": account, "events": [people, services], "requestId": str(uuid.uuid4())}
    answer = api.call(f"{publishing}/Publish", **request)
    check([event.get("matchedWebhooks") for event in answer["events"]] == [3, 3], f"published {answer}")
    check(other.call(f"{publishing}/Publish", **request).get("duplicate"), "a repeated publish is known")
    api.fails(f"{publishing}/Publish", grpc.StatusCode.INVALID_ARGUMENT, parent=account, events=[{"eventName": "1 bad"}])

    exported = api.call(f"{webhooks}/ExportSigningSecret", name=f"{account}/webhooks/signed")
    secret = exported["document"]["secrets"][0]["secret"]
    check(secret.startswith("whsec_"), "the secret has the standard form")
    api.fails(f"{webhooks}/ExportSigningSecret", grpc.StatusCode.FAILED_PRECONDITION, name=f"{account}/webhooks/none")
    for event_id in ("struct", "exact"):
        _, headers, body = receiver.wait("/signed", event_id)
        Webhook(secret).verify(body, headers)
        try:
            Webhook(secret).verify(body + b" ", headers)
        except WebhookVerificationError:
            pass
        else:
            raise AssertionError("a changed body was verified")
        _, headers, _ = receiver.wait("/basic", event_id)
        basic = Authorization.from_header(headers["authorization"])
        check((basic.type, basic.username, basic.password) == ("basic", "ada", "p:w"), f"basic {headers}")
        _, headers, _ = receiver.wait("/none", event_id)
        check("authorization" not in headers and "webhook-signature" not in headers, f"none {headers}")
    _, _, body = receiver.wait("/none", "struct")
    event = json.loads(body)["events"][0]
    check(event["data"] == people["data"] and '"count":3' in body.decode().replace(" ", ""), f"body {body}")
    _, _, body = receiver.wait("/none", "exact")
    check(exact.encode() in body, f"body {body}")
    print("published, delivered and verified")

    transcript = other.call(f"{webhooks}/TestWebhook", name=f"{account}/webhooks/signed")
    check(transcript["outcome"] == "DELIVERED" and transcript["answer"]["statusCode"] == 204, f"tested {transcript}")
    event_id = transcript["request"]["signedContent"].split(".")[0]
    _, headers, body = receiver.wait("/signed", event_id)
    check(transcript["request"]["body"] == body.decode(), f"tested {transcript}")
    print("tested")
    parent = f"{account}/webhooks/none"
    api.wait_for(f"{deliveries}/GetDelivery", lambda found: found["state"] == "DELIVERED", name=f"{parent}/deliveries/exact")
    answer = other.call(f"{deliveries}/ListDeliveries", parent=parent, states=["DELIVERED"], eventTypes=["PY_*"])
    check({found["eventId"] for found in answer["deliveries"]} == {"struct", "exact"}, f"listed {answer}")
    answer = api.call(f"{deliveries}/ListAttempts", parent=f"{parent}/deliveries/exact")
    check([attempt["statusCode"] for attempt in answer["attempts"]] == [204], f"attempts {answer}")
    answer = api.call(f"{deliveries}/ExplainDelivery", name=f"{parent}/deliveries/exact")
    check(answer["cause"] == "DELIVERED" and answer["summary"], f"explained {answer}")
    api.fails(f"{deliveries}/GetDelivery", grpc.StatusCode.NOT_FOUND, name=f"{parent}/deliveries/absent")
    check(not api.call(f"{deliveries}/ListDeadLetters", parent=parent, view="FULL").get("deadLetters"), "there are dead letters")
    print("looked up")

    retired = api.call(f"{webhooks}/UpdateWebhook", webhook={"name": edited["name"], "active": False}, updateMask="active")
    check(retired["state"] == "RETIRED" and not retired.get("active"), f"retired {retired}")
    answer = api.call(f"{publishing}/Publish", parent=account, events=[{"eventId": "late", "eventName": "PY_LATE", "data": {}}])
    check(answer["events"][0]["matchedWebhooks"] == 2, f"a retired webhook matched: {answer}")
    receiver.wait("/basic", "late")
    print("retired")

    for name in auths:
        api.call(f"{webhooks}/DeleteWebhook", name=f"{account}/webhooks/{name}")
        other.fails(f"{webhooks}/GetWebhook", grpc.StatusCode.NOT_FOUND, name=f"{account}/webhooks/{name}")
    check(not api.call(f"{webhooks}/ListWebhooks", parent=account).get("webhooks"), "webhooks are left")
    print("deleted")
    print("all done")


if __name__ == "__main__":
    main(*sys.argv[1:3])
