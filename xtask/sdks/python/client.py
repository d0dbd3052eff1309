"""boto3 as a pod uses it; the protocol is in ../README.md."""

import json
import sys
import time

import boto3

session = boto3.Session()


def get():
    credentials = session.get_credentials()
    if credentials is None:
        raise RuntimeError("boto3 found no credentials")
    answer = {"accessKeyId": credentials.get_frozen_credentials().access_key}
    # boto3 has no public way to see the end of credentials that it refreshes by itself.
    expiry = getattr(credentials, "_expiry_time", None)
    if expiry is not None:
        answer["expiration"] = expiry.isoformat()
    if getattr(credentials, "account_id", None):
        answer["account"] = credentials.account_id
    return answer


def identity():
    answer = get()
    answer["arn"] = session.client("sts").get_caller_identity()["Arn"]
    return answer


COMMANDS = {"get": get, "identity": identity}

for line in sys.stdin:
    started = time.monotonic()
    try:
        answer = {"ok": True, **COMMANDS[line.strip()]()}
    except Exception as error:  # whatever the SDK raises is what its user would see
        answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
    answer["ms"] = round((time.monotonic() - started) * 1000)
    print(json.dumps(answer), flush=True)
