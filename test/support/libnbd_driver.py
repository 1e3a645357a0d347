"""Drives libnbd for a test: one JSON request a line on standard input, one JSON answer a line on standard output.

A request is a call of a method of one handle: [method, argument...]. Bytes travel as {"base64": "..."}. An answer is
{"value", "startMs", "endMs"} or {"errno", "message", "startMs", "endMs"}, the times being those of the calendar.

Methods that take callbacks are wrapped: block_status gives [[context, offset, [length, flags, ...], error]...],
block_status_64 (libnbd 1.20) the same with [length, flags] as pairs,
pread_structured gives {"bytes", "chunks": [[offset, length, "data" | "hole" | "error", error]...]}, opt_list gives
[[name, description]...], and opt_list_meta_context gives names.
"""

import base64
import json
import sys
import time

import nbd


def decode(value):
    if isinstance(value, dict):
        return base64.b64decode(value["base64"])
    return value


def encode(value):
    if isinstance(value, (bytes, bytearray)):
        return {"base64": base64.b64encode(value).decode()}
    return value


def block_status(handle, count, offset, flags=0):
    found = []

    def extent(context, at, entries, error):
        found.append([context, at, list(entries), error.value])
        return 0

    handle.block_status(count, offset, extent, flags)
    return found


def block_status_64(handle, count, offset, flags=0):
    found = []

    def extent(context, at, entries, error):
        found.append([context, at, [list(entry) for entry in entries], error.value])
        return 0

    handle.block_status_64(count, offset, extent, flags)
    return found


KINDS = {nbd.READ_DATA: "data", nbd.READ_HOLE: "hole", nbd.READ_ERROR: "error"}


def pread_structured(handle, count, offset, flags=0):
    chunks = []

    def chunk(part, at, status, error):
        chunks.append([at, len(part), KINDS[status], error.value])
        return 0

    content = handle.pread_structured(count, offset, chunk, flags)
    return {"bytes": encode(content), "chunks": chunks}


def opt_list(handle):
    found = []
    handle.opt_list(lambda name, description: found.append([name, description]))
    return found


def opt_list_meta_context(handle):
    found = []
    handle.opt_list_meta_context(lambda name: found.append(name))
    return found


WRAPPED = {
    function.__name__: function
    for function in (
        block_status,
        block_status_64,
        pread_structured,
        opt_list,
        opt_list_meta_context,
    )
}


def call(handle, method, arguments):
    arguments = [decode(argument) for argument in arguments]
    if method in WRAPPED:
        return WRAPPED[method](handle, *arguments)
    return encode(getattr(handle, method)(*arguments))


def answer(handle, method, arguments):
    reply = {"startMs": time.time() * 1000}
    try:
        reply["value"] = call(handle, method, arguments)
    except nbd.Error as failure:
        reply["errno"] = failure.errno or "NONE"
        reply["message"] = failure.string
    reply["endMs"] = time.time() * 1000
    print(json.dumps(reply), flush=True)


def main():
    handle = nbd.NBD()
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        answer(handle, method, arguments)


main()
