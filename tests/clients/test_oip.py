"""Triton's client package, over HTTP and gRPC, against a running platform: INKSTONE_URL and INKSTONE_KEY name it."""

import asyncio
import base64
import io
import json
import os
import queue
import time
import urllib.request

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from PIL import Image
from tritonclient.utils import InferenceServerException

PROMPT = b"a 3d cat on a blue background"
MODEL = "inkstone-demo"
ADDRESS = os.environ["INKSTONE_URL"].removeprefix("http://")
KEY = {"authorization": "Bearer " + os.environ["INKSTONE_KEY"]}


class Http:
    module = triton_http

    def __init__(self):
        self.client = triton_http.InferenceServerClient(ADDRESS)

    def metadata(self):
        return self.client.get_model_metadata(MODEL, headers=dict(KEY))

    def config(self):
        return self.client.get_model_config(MODEL, headers=dict(KEY))

    def index(self):
        return self.client.get_model_repository_index(headers=dict(KEY))


class Grpc:
    module = triton_grpc

    def __init__(self):
        self.client = triton_grpc.InferenceServerClient(ADDRESS)

    def metadata(self):
        return self.client.get_model_metadata(MODEL, headers=dict(KEY), as_json=True)

    def config(self):
        return self.client.get_model_config(MODEL, headers=dict(KEY), as_json=True)["config"]

    def index(self):
        return self.client.get_model_repository_index(headers=dict(KEY), as_json=True)["models"]


@pytest.fixture(scope="module", params=[Http, Grpc], ids=["http", "grpc"])
def wire(request):
    wire = request.param()
    yield wire
    wire.client.close()


def tensors(module, **values):
    """Inputs by name; lists of bytes, of integers, or of floats."""
    made = []
    for name, value in ({"PROMPT": [PROMPT], "STEPS": [6], "SEED": [7]} | values).items():
        if isinstance(value[0], bytes):
            array, datatype = np.array(value, dtype=np.object_), "BYTES"
        elif name == "SEED":
            array, datatype = np.array(value, dtype=np.uint64), "UINT64"
        elif isinstance(value[0], int):
            array, datatype = np.array(value, dtype=np.int32), "INT32"
        else:
            array, datatype = np.array(value, dtype=np.float32), "FP32"
        tensor = module.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def draw(wire, outputs=None, parameters=None, version="", headers=KEY, model=MODEL, **values):
    return wire.client.infer(
        model,
        tensors(wire.module, **values),
        model_version=version,
        outputs=outputs,
        parameters=parameters,
        # The client over HTTP writes headers of its own into those that it is given.
        headers=dict(headers),
        request_id="my-request",
    )


def picture(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_the_server_is_live_and_ready_without_a_key(wire):
    assert wire.client.is_server_live()
    assert wire.client.is_server_ready()
    metadata = wire.client.get_server_metadata()
    name = metadata["name"] if isinstance(metadata, dict) else metadata.name
    assert name == "inkstone"


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("health/live", {"live": True}),
        ("health/ready", {"ready": True, "live": True}),
        (f"models/{MODEL}/ready", {"name": MODEL, "ready": True}),
        (f"models/{MODEL}/versions/1/ready", {"name": MODEL, "ready": True}),
    ],
)
def test_health_is_said_in_json_which_kserves_client_reads(path, answer):
    request = urllib.request.Request(f"{os.environ['INKSTONE_URL']}/v2/{path}", headers=KEY)
    with urllib.request.urlopen(request) as served:
        assert served.headers["content-type"] == "application/json"
        assert json.load(served) == answer


def test_a_model_tells_its_tensors_and_versions(wire):
    metadata = wire.metadata()
    assert metadata["name"] == MODEL
    assert "PROMPT" in [tensor["name"] for tensor in metadata["inputs"]]
    assert "IMAGE" in [tensor["name"] for tensor in metadata["outputs"]]
    config = wire.config()
    assert {tensor["name"]: tensor["data_type"] for tensor in config["input"]}["PROMPT"] == "TYPE_STRING"
    assert [(row["name"], row["state"]) for row in wire.index()] == [(MODEL, "READY")]
    assert wire.client.is_model_ready(MODEL, headers=dict(KEY))
    assert wire.client.is_model_ready(MODEL, metadata["versions"][0], headers=dict(KEY))
    assert not wire.client.is_model_ready(MODEL, "99", headers=dict(KEY))
    assert not wire.client.is_model_ready("another", headers=dict(KEY))


def test_a_batch_is_drawn_with_its_own_prompts_and_seeds(wire):
    answer = draw(wire, PROMPT=[PROMPT, b"a rocket, flat style", PROMPT], SEED=[7, 8, 7])
    images = answer.as_numpy("IMAGE")
    assert images.shape == (3,)
    assert [picture(data).size for data in images] == [(128, 128)] * 3
    assert images[0] == images[2] != images[1]
    assert answer.as_numpy("SEED").tolist() == [7, 8, 7]
    assert len(set(answer.as_numpy("TASK_ID").tolist())) == 3


def test_pixels_are_those_of_the_file(wire):
    raw = draw(wire, parameters={"image_format": "raw"}, PROMPT=[PROMPT, PROMPT], WIDTH=[64], HEIGHT=[96])
    pixels = raw.as_numpy("IMAGE")
    assert (pixels.shape, pixels.dtype) == ((2, 96, 64, 3), np.uint8)
    file = draw(wire, parameters={"image_format": "png"}, WIDTH=[64], HEIGHT=[96]).as_numpy("IMAGE")[0]
    assert np.array_equal(pixels[0], np.asarray(picture(file).convert("RGB")))


def test_other_file_formats_and_options_are_taken(wire):
    options = {"GUIDANCE_SCALE": [3.0], "SCHEDULER": [b"euler-ancestral"], "NEGATIVE_PROMPT": [b"dogs"]}
    answer = draw(wire, parameters={"image_format": "webp"}, version="1", **options)
    assert picture(answer.as_numpy("IMAGE")[0]).format == "WEBP"
    assert draw(wire, **options).as_numpy("IMAGE")[0] != draw(wire).as_numpy("IMAGE")[0]


def test_only_the_outputs_asked_for_are_answered(wire):
    asked = [wire.module.InferRequestedOutput("IMAGE")]
    answer = draw(wire, outputs=asked)
    assert answer.as_numpy("IMAGE") is not None
    assert answer.as_numpy("SEED") is None


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"PROMPT": [b" "]}, "PROMPT must be given"),
        ({"PROMPT": [b"\xff"]}, "PROMPT"),
        ({"PROMPT": [PROMPT] * 11}, "PROMPT"),
        ({"PROMPT": [PROMPT, PROMPT], "SEED": [1, 2, 3]}, "SEED"),
        ({"STEPS": [-1]}, "STEPS"),
        ({"STEPS": [100_000]}, "STEPS must be"),
        ({"WIDTH": [100]}, "WIDTH must be"),
        ({"SCHEDULER": [b"plms"]}, "SCHEDULER"),
        ({"LATENTS": [1.0]}, "LATENTS"),
        ({"parameters": {"image_format": "bmp"}}, "image_format"),
        ({"model": "another"}, "another"),
        ({"version": "99"}, "99"),
        ({"headers": {}}, "credentials"),
    ],
)
def test_bad_input_raises_the_packages_own_error_and_says_what_is_wrong(wire, change, names):
    with pytest.raises(InferenceServerException) as raised:
        draw(wire, **change)
    assert names in raised.value.message()


def test_json_without_raw_data_is_taken_and_answered():
    body = {
        "id": "7",
        "parameters": None,
        "outputs": None,
        "inputs": [
            {"name": "PROMPT", "shape": [1, 1], "datatype": "BYTES", "parameters": None, "data": [[PROMPT.decode()]]},
            {"name": "STEPS", "shape": [1], "datatype": "INT32", "data": [6]},
            {"name": "SEED", "shape": [1], "datatype": "INT64", "data": [7]},
        ],
    }
    url = f"{os.environ['INKSTONE_URL']}/v2/models/{MODEL}/infer"
    request = urllib.request.Request(url, json.dumps(body).encode(), KEY | {"content-type": "application/json"})
    with urllib.request.urlopen(request) as served:
        answer = json.load(served)
    assert (answer["id"], answer["model_name"]) == ("7", MODEL)
    image = answer["outputs"][0]
    assert (image["shape"], image["parameters"]) == ([1], {"content_type": "base64"})
    assert picture(base64.b64decode(image["data"][0])).format == "PNG"


def test_a_stream_answers_each_request_and_survives_a_refusal():
    answers = queue.Queue()
    with triton_grpc.InferenceServerClient(ADDRESS) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=dict(KEY))
        for steps in ([4], [-1], [5]):
            client.async_stream_infer(MODEL, tensors(triton_grpc, STEPS=steps))
        first, refused, last = (answers.get(timeout=60) for _ in range(3))
        client.stop_stream()
    assert picture(first[0].as_numpy("IMAGE")[0]).size == (128, 128)
    assert "STEPS" in refused[1].message()
    assert last[1] is None


def test_what_is_left_of_the_limit_is_told_with_all_pictures_of_a_batch_charged():
    inputs = [
        {"name": "PROMPT", "shape": [10], "datatype": "BYTES", "data": [PROMPT.decode()] * 10},
        {"name": "STEPS", "shape": [1], "datatype": "INT32", "data": [1]},
    ]
    url = f"{os.environ['INKSTONE_URL']}/v2/models/{MODEL}/infer"
    request = urllib.request.Request(url, json.dumps({"inputs": inputs}).encode(), KEY | {"content-type": "application/json"})
    with urllib.request.urlopen(request) as served:
        over_http = served.headers
    call = triton_grpc.service_pb2.ModelInferRequest(model_name=MODEL)
    prompts = call.inputs.add(name="PROMPT", datatype="BYTES", shape=[10])
    prompts.contents.bytes_contents.extend([PROMPT] * 10)
    steps = call.inputs.add(name="STEPS", datatype="INT32", shape=[1])
    steps.contents.int_contents.append(1)
    with grpc.insecure_channel(ADDRESS) as channel:
        stub = triton_grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        _, answered = stub.ModelInfer.with_call(call, metadata=list(KEY.items()), timeout=60)
    over_grpc = dict(answered.initial_metadata())
    for told in (over_http, over_grpc):
        limit, left = int(told["ratelimit-limit"]), int(told["ratelimit-remaining"])
        # One is charged when the caller is let in, and may be there again before the other nine are charged.
        assert left <= limit - 9, (limit, left)


def test_each_response_of_a_stream_says_that_it_is_its_requests_last():
    answers = queue.Queue()
    with triton_grpc.InferenceServerClient(ADDRESS) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=dict(KEY))
        client.async_stream_infer(MODEL, tensors(triton_grpc), enable_empty_final_response=True)
        result, error = answers.get(timeout=60)
        client.stop_stream()
    assert error is None
    response = result.get_response()
    assert response.parameters["triton_final_response"].bool_param
    assert len(response.outputs) == 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, "UNAUTHENTICATED"),
        (KEY | {"idempotency-key": "of-all-requests"}, "INVALID_ARGUMENT"),
    ],
)
def test_a_stream_without_a_key_or_with_an_idempotency_key_is_refused(headers, status):
    answers = queue.Queue()
    with triton_grpc.InferenceServerClient(ADDRESS) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=dict(headers))
        assert status in answers.get(timeout=60)[1].status()
        client.stop_stream(cancel_requests=True)


@pytest.mark.parametrize(("module", "sync"), [(triton_http_aio, triton_http), (triton_grpc_aio, triton_grpc)])
def test_the_packages_asynchronous_clients_work_too(module, sync):
    async def draw():
        async with module.InferenceServerClient(ADDRESS) as client:
            return await client.infer(MODEL, tensors(sync), headers=dict(KEY))

    assert picture(asyncio.run(draw()).as_numpy("IMAGE")[0]).size == (128, 128)


def newest_tasks():
    request = urllib.request.Request(os.environ["INKSTONE_URL"] + "/v1/tasks?limit=20", headers=KEY)
    with urllib.request.urlopen(request) as served:
        return [task for task in json.load(served)["data"] if task["request"]["steps"] == 99]


def wait_for_phases(wanted):
    deadline = time.monotonic() + 60
    while {task["phase"] for task in newest_tasks()} - wanted or len(newest_tasks()) != 3:
        assert time.monotonic() < deadline, newest_tasks()
        time.sleep(0.02)


def test_a_call_that_its_caller_gives_up_cancels_every_task_of_its_batch():
    with triton_grpc.InferenceServerClient(ADDRESS) as client:
        inputs = tensors(triton_grpc, PROMPT=[PROMPT] * 3, STEPS=[99])
        call = client.async_infer(MODEL, inputs, lambda result, error: None, headers=KEY)
        wait_for_phases({"queued", "scheduled", "running"})
        call.cancel()
        wait_for_phases({"cancelled"})
