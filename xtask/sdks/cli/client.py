"""The aws CLI as a pod uses it, one process per command; the protocol is in ../README.md."""

import json
import pathlib
import re
import subprocess
import sys
import time

AWS = pathlib.Path(sys.executable).with_name("aws")


def identity():
    # The CLI has no command that tells which credentials it uses; its debug log does, in the signature of the request.
    # That log holds a session token as well and goes no further than this function.
    command = [sys.executable, AWS, "--debug", "sts", "get-caller-identity", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}")
    used = re.search(r"Credential=(\w+)/", done.stderr)
    if used is None:
        raise RuntimeError("the CLI's debug log shows no signed request")
    caller = json.loads(done.stdout)
    return {"accessKeyId": used.group(1), "account": caller["Account"], "arn": caller["Arn"]}


COMMANDS = {"get": identity, "identity": identity}

for line in sys.stdin:
    started = time.monotonic()
    try:
        answer = {"ok": True, **COMMANDS[line.strip()]()}
    except Exception as error:  # the CLI's own words are what its user would see
        answer = {"ok": False, "error": str(error)}
    answer["ms"] = round((time.monotonic() - started) * 1000)
    print(json.dumps(answer), flush=True)
