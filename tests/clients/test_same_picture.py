"""One request in every dialect: the same file, byte for byte."""

import base64
import hashlib
import json
import os
import time
import urllib.request

import numpy as np
import tritonclient.grpc as triton

URL = os.environ["INKSTONE_URL"]
KEY = {"authorization": "Bearer " + os.environ["INKSTONE_KEY"]}
MODEL = "inkstone-demo"
PROMPT = "a 3d cat on a blue background"
STEPS, SEED, GUIDANCE, SCHEDULER, SIDE = 8, 7, 2.5, "euler", 96
KNOBS = {"seed": SEED, "steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": SCHEDULER}


def ask(path, body=None, headers=None):
    url = path if path.startswith("http") else URL + path
    data = json.dumps(body).encode() if body is not None else None
    kind = {"content-type": "application/json"} if data else {}
    with urllib.request.urlopen(urllib.request.Request(url, data, KEY | kind | (headers or {}))) as served:
        return served.read()


def wait(read, done):
    while True:
        answer = json.loads(ask(read))
        if done(answer):
            return answer
        time.sleep(0.1)


def own():
    body = KNOBS | {"model": MODEL, "prompt": PROMPT, "width": SIDE, "height": SIDE}
    task = json.loads(ask("/v1/tasks", body))["id"]
    ended = wait(f"/v1/tasks/{task}", lambda task: task["phase"] == "succeeded")
    return ask(ended["images"][0]["url"])


def openai():
    body = KNOBS | {"model": MODEL, "prompt": PROMPT, "size": f"{SIDE}x{SIDE}"}
    return base64.b64decode(json.loads(ask("/v1/images/generations", body))["data"][0]["b64_json"])


def dashscope_task():
    body = {"model": MODEL, "input": {"prompt": PROMPT}, "parameters": KNOBS | {"size": f"{SIDE}*{SIDE}"}}
    path = "/api/v1/services/aigc/text2image/image-synthesis"
    task = json.loads(ask(path, body, {"x-dashscope-async": "enable"}))["output"]["task_id"]
    ended = wait(f"/api/v1/tasks/{task}", lambda answer: answer["output"]["task_status"] == "SUCCEEDED")
    return ask(ended["output"]["results"][0]["url"])


def dashscope_message():
    messages = [{"role": "user", "content": [{"text": PROMPT}]}]
    body = {"model": MODEL, "input": {"messages": messages}, "parameters": KNOBS | {"size": f"{SIDE}*{SIDE}"}}
    answer = json.loads(ask("/api/v1/services/aigc/multimodal-generation/generation", body))
    return ask(answer["output"]["choices"][0]["message"]["content"][0]["image"])


VALUES = {
    "PROMPT": ("BYTES", PROMPT),
    "SCHEDULER": ("BYTES", SCHEDULER),
    "SEED": ("UINT64", SEED),
    "STEPS": ("INT32", STEPS),
    "WIDTH": ("INT32", SIDE),
    "HEIGHT": ("INT32", SIDE),
    "GUIDANCE_SCALE": ("FP32", GUIDANCE),
}


def oip_http():
    inputs = [
        {"name": name, "shape": [1], "datatype": datatype, "data": [value]}
        for name, (datatype, value) in VALUES.items()
    ]
    answer = json.loads(ask(f"/v2/models/{MODEL}/infer", {"inputs": inputs}))
    return base64.b64decode(answer["outputs"][0]["data"][0])


def oip_grpc():
    numpy = {"BYTES": np.object_, "UINT64": np.uint64, "INT32": np.int32, "FP32": np.float32}
    inputs = []
    for name, (datatype, value) in VALUES.items():
        value = value.encode() if isinstance(value, str) else value
        tensor = triton.InferInput(name, [1], datatype)
        tensor.set_data_from_numpy(np.array([value], dtype=numpy[datatype]))
        inputs.append(tensor)
    with triton.InferenceServerClient(URL.removeprefix("http://")) as client:
        return client.infer(MODEL, inputs, headers=KEY).as_numpy("IMAGE")[0]


def test_the_same_request_and_seed_is_the_same_file_in_every_dialect():
    dialects = [own, openai, dashscope_task, dashscope_message, oip_http, oip_grpc]
    digests = {dialect.__name__: hashlib.sha256(dialect()).hexdigest() for dialect in dialects}
    assert len(set(digests.values())) == 1, digests
