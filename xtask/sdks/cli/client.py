"""The aws CLI as a pod uses it, one process per command; the protocol is in ../README.md."""

import json
import pathlib
import subprocess
import sys
import time

AWS = pathlib.Path(sys.executable).with_name("aws")


def aws(*arguments):
    done = subprocess.run([sys.executable, AWS, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"aws ended with status {done.returncode}")
    return json.loads(done.stdout)


def get():
    credentials = aws("configure", "export-credentials", "--format", "process")
    return {"accessKeyId": credentials["AccessKeyId"], "expiration": credentials.get("Expiration")}


def identity():
    return {**get(), "arn": aws("sts", "get-caller-identity", "--output", "json")["Arn"]}


COMMANDS = {"get": get, "identity": identity}

for line in sys.stdin:
    started = time.monotonic()
    try:
        answer = {"ok": True, **COMMANDS[line.strip()]()}
    except Exception as error:  # the CLI's own words are what its user would see
        answer = {"ok": False, "error": str(error)}
    answer["ms"] = round((time.monotonic() - started) * 1000)
    print(json.dumps(answer), flush=True)
